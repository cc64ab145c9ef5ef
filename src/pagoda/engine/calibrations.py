"""What ``pagoda calibrate METHOD MODEL`` found, read from beside the model when a request first needs it.

A number per head and layer is written as JSON, for people to read; weights and bases as safetensors, in float16 where
that holds them all, else in float32. What is not finite is neither written nor served.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.beside import beside
from ..core.errors import ConfigError, ModelError, RequestError, WeightsError
from ..core.units import format_bytes
from ..weights.header import read_header
from ..weights.reader import Checkpoint
from ..weights.writer import write_tensors


class NotFree(RequestError):
    """``num_bytes`` for a calibration are not free now."""

    def __init__(self, method: str, num_bytes: int) -> None:
        super().__init__(
            f"the calibration of {method} takes {format_bytes(num_bytes)}, and what others read and pinned prefixes do "
            "not leave that much; unpin some or raise the memory budget"
        )
        self.num_bytes = num_bytes


Completing = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

FOLDER = "kv-calibration"
READABLE = 1024
"""Numbers that are written as JSON, at most."""


class Calibrations:
    """Tensors by method and name, float32. They stay until they are forgotten; ``hold(method, bytes)`` leases them
    first (False: no room), where ``fits(bytes)``. ``num_layers``: of the model, where that is known.
    """

    def __init__(
        self,
        model: Path,
        hold: Callable[[str, int], bool] = lambda _name, _bytes: True,
        fits: Callable[[int], bool] = lambda _bytes: True,
        num_layers: int | None = None,
    ) -> None:
        self._model, self._hold, self._fits, self._num_layers = Path(model), hold, fits, num_layers
        self._folder = beside(self._model, FOLDER)
        self._read: dict[str, Mapping[str, Tensor]] = {}
        self._sizes: dict[str, int] = {}  # bytes, when it was last read

    def load(self, method: str, complete: Completing = dict) -> Mapping[str, Tensor]:
        """``complete`` adds what follows from what was found (`Selection.complete`). Raises ConfigError when the method
        was not calibrated for this model, ModelError for a damaged file, NotFree when there is no room.
        """
        if method not in self._read:
            size = self._sizes.get(method, 0)
            if not self._fits(size):  # who waits for it asks before every step: no file is read for nothing
                raise NotFree(method, size)
            path = self.found(method)
            if path is None:
                raise ConfigError(
                    f"{method} was not calibrated for this model; run: pagoda calibrate {method} {self._model}"
                )
            raw = _parse(path)
            if bad := _not_finite(raw):
                raise ModelError(
                    f"{path} holds numbers that are not finite ({bad}); run: pagoda calibrate {method} {self._model} "
                    "--force"
                )
            of = {len(tensor) for tensor in raw.values()}
            if self._num_layers is not None and of != {self._num_layers}:
                raise ModelError(
                    f"{path} is of a model of {' or '.join(map(str, sorted(of)))} layers, and this one has "
                    f"{self._num_layers}; run: pagoda calibrate {method} {self._model} --force"
                )
            found = complete(raw)
            num_bytes = self._sizes[method] = sum(t.nbytes for t in found.values())
            if not self._hold(method, num_bytes):
                raise NotFree(method, num_bytes)
            self._read[method] = found
        return self._read[method]

    def check(self, method: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """``sizes`` of what was loaded, behind the layers, as the method wants them for this model (0: any). Raises
        ModelError for others.
        """
        found = self._read[method]
        for name, wanted in sizes.items():
            has = tuple(found[name].shape[1:]) if name in found else ()
            if len(has) != len(wanted) or any(want not in (0, size) for want, size in zip(wanted, has, strict=True)):
                raise ModelError(
                    f"{self.found(method)} is of a model of other heads ({name} is {_spelled(has)} in each layer, and "
                    f"this one wants {_spelled(wanted)}); run: pagoda calibrate {method} {self._model} --force"
                )

    def forget(self, method: str) -> None:
        """Its bytes are wanted; ``load`` reads it again."""
        self._read.pop(method, None)

    def found(self, method: str) -> Path | None:
        """The file that ``load`` reads, if it is there."""
        return next((path for path in self._paths(method) if path.is_file()), None)

    def save(self, method: str, found: Mapping[str, Tensor], notes: Mapping[str, object]) -> Path:
        """Writes the file that ``load`` reads; returns its path. Raises ModelError where that cannot be written,
        ConfigError for numbers that are not finite: nothing is written then.
        """
        if bad := _not_finite(found):
            raise ConfigError(
                f"{method} found numbers that are not finite ({bad}), and nothing was written; look at other texts: "
                "another --text, or a greater --length"
            )
        try:
            return self._save(method, found, notes)
        except OSError as error:
            raise ModelError(
                f"{self._folder} cannot be written ({error.strerror}); copy the model to a folder that can be"
            ) from error

    def _save(self, method: str, found: Mapping[str, Tensor], notes: Mapping[str, object]) -> Path:
        self._folder.mkdir(exist_ok=True)
        text, weights = self._paths(method)
        if sum(t.numel() for t in found.values()) <= READABLE and all(t.dim() == 2 for t in found.values()):
            path, other = text, weights
            data = {name: [[round(x, 5) for x in row] for row in t.tolist()] for name, t in found.items()}
            path.write_text(json.dumps({"method": method, "notes": dict(notes), "tensors": data}, indent=1) + "\n")
        else:
            path, other = weights, text
            narrow = {name: _narrow(t.detach()).contiguous() for name, t in found.items()}
            write_tensors(path, narrow, json.dumps(dict(notes)))
        other.unlink(missing_ok=True)
        self._read.pop(method, None)
        return path

    def _paths(self, method: str) -> tuple[Path, Path]:
        return self._folder / f"{method}.json", self._folder / f"{method}.safetensors"


def _spelled(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(size) if size else "any" for size in sizes) or "not there"


def _not_finite(found: Mapping[str, Tensor]) -> str:
    """``"w1: 438 of 24576"`` of each tensor with such numbers."""
    counts = {name: int((~torch.isfinite(t)).sum()) for name, t in found.items()}
    return ", ".join(f"{name}: {count} of {found[name].numel()}" for name, count in counts.items() if count)


def _narrow(found: Tensor) -> Tensor:
    half = found.to(torch.float16)
    return half if bool(torch.isfinite(half).all()) else found.to(torch.float32)


def _parse(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            file = Checkpoint(path.parent, read_header(path))
            return {name: file.read(name).float() for name in file.entries}
        data = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        return {name: torch.tensor(rows, dtype=torch.float32) for name, rows in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, WeightsError) as error:
        raise ModelError(f"{path} is not a calibration file ({error}); run pagoda calibrate again") from error
