"""What a scheme says about a checkpoint: which stored tensors make one that the model knows, and in which format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import WeightsError
from ..formats.base import GROUPS, WeightFormat
from ..header import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

    from ..packed import CodedMatrix

Read = Callable[[str], "Tensor"]
"""A stored tensor by its name, in memory of its own."""


@dataclass(frozen=True, slots=True)
class Logical:
    """One tensor as the model knows it. ``build`` makes it of the stored ``parts`` (the first of them is the largest).

    ``format`` None: the values come unpacked, because no weight format holds exactly these codes. ``made_bytes``: what
    ``build`` takes beside its parts; None: nothing for one part, the result and a block's scratch for several.
    ``rows``: the part whose rows are the tensor's own, one after the other, in its dtype or as the format's ``codes``.
    ``by_rows``: ``build`` of some rows of the parts (those that have a row per row of the tensor) gives these rows; of
    ``row_step`` rows, or a multiple, from a multiple.
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    build: Callable[[Mapping[str, Tensor]], Tensor | CodedMatrix]
    format: WeightFormat | None = None
    made_bytes: int | None = None
    rows: str | None = None
    by_rows: bool = False
    row_step: int = 1


class Scheme(ABC):
    """One checkpoint's quantization, read strictly from its config. Raises WeightsError for what it does not know."""

    def __init__(self, config: Mapping[str, Any], entries: Mapping[str, TensorEntry], read: Read) -> None:
        self.config, self.entries, self.read = config, entries, read
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Reads the config; raises WeightsError, or ConfigError from strict reading."""

    @abstractmethod
    def logical(self) -> dict[str, Logical]:
        """Every tensor by the name that the model knows."""

    def entry(self, name: str) -> TensorEntry:
        """The stored tensor that has to be there."""
        if name not in self.entries:
            raise WeightsError(f"the checkpoint is quantized by {self.name}, but tensor {name!r} is missing")
        return self.entries[name]

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises WeightsError unless the stored tensor has this shape."""
        entry = self.entry(name)
        if entry.shape != shape:
            raise WeightsError(
                f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}, but {self.name} needs {list(shape)}"
            )


class ModuleScheme(Scheme):
    """A scheme that packs the weights of modules one by one, and leaves everything else as it was."""

    @abstractmethod
    def marks(self) -> str:
        """The ending of the stored name that marks a quantized module, for example ``.qweight``."""

    @abstractmethod
    def module(self, name: str) -> Logical:
        """The weight of the module ``name``."""

    def logical(self) -> dict[str, Logical]:
        """Every tensor by the name that the model knows: quantized weights, and those stored plainly."""
        found: dict[str, Logical] = {}
        used: set[str] = set()
        for stored in self.entries:
            if stored.endswith(self.marks()) and self.is_packed(stored):
                name = stored.removesuffix(self.marks())
                found[f"{name}.weight"] = made = self.module(name)
                if f"{name}.weight" in self.entries and f"{name}.weight" not in made.parts:
                    raise WeightsError(f"{self.entries[stored].file}: {name + '.weight'!r} is both packed and plain")
                used.update(made.parts, self.leftovers(name))
        for stored, entry in self.entries.items():
            if stored not in used and stored not in found:
                found[stored] = plain(stored, entry)
        return found

    def is_packed(self, stored: str) -> bool:
        """Whether a tensor with the marking name is really packed."""
        return True

    def leftovers(self, name: str) -> Iterable[str]:
        """Stored tensors of a module that nothing is made of."""
        return ()


def plain(name: str, entry: TensorEntry) -> Logical:
    """A tensor that is stored as it is."""
    return Logical((name,), entry.shape, lambda tensors: tensors[name], rows=name, by_rows=True)


def whole_groups(group: int, cols: int) -> int | None:
    """The group size of ours that holds scales of ``group`` inputs exactly, repeated if need be; None if none does."""
    for ours in sorted(GROUPS, reverse=True):
        if group % ours == 0 and (group <= cols or cols % ours == 0):
            return ours
    return None


def repeat_groups(values: Tensor, group: int, ours: int, cols: int) -> Tensor:
    """``[rows, groups]`` for groups of ``group`` inputs -> for groups of ``ours``."""
    return values if group == ours else values.repeat_interleave(group // ours, 1)[:, : -(-cols // ours)]
