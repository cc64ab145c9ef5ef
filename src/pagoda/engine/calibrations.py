"""What ``pagoda calibrate METHOD MODEL`` found, read from beside the model when a request first needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import ConfigError, ModelError

FOLDER = "kv-calibration"


class Calibrations:
    """Tensors by method and name. Small (a number per head and layer), so they stay once read."""

    def __init__(self, model_folder: Path) -> None:
        self._folder = Path(model_folder) / FOLDER
        self._read: dict[str, Mapping[str, Tensor]] = {}

    def load(self, method: str) -> Mapping[str, Tensor]:
        """Raises ConfigError when the method was not calibrated for this model, ModelError for a damaged file."""
        if method not in self._read:
            path = self._folder / f"{method}.json"
            if not path.is_file():
                raise ConfigError(
                    f"{method} was not calibrated for this model; run: pagoda calibrate {method} {self._folder.parent}"
                )
            self._read[method] = _parse(path)
        return self._read[method]

    def save(self, method: str, found: Mapping[str, Tensor], notes: Mapping[str, object]) -> Path:
        """Writes the file that ``load`` reads; returns its path."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{method}.json"
        data = {name: [[round(x, 5) for x in row] for row in t.tolist()] for name, t in found.items()}
        path.write_text(json.dumps({"method": method, "notes": dict(notes), "tensors": data}, indent=1) + "\n")
        self._read.pop(method, None)
        return path


def _parse(path: Path) -> Mapping[str, Tensor]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        return {name: torch.tensor(rows, dtype=torch.float32) for name, rows in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a calibration file ({error}); run pagoda calibrate again") from error
