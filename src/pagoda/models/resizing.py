"""Weights that grow and shrink while a model runs: bitstack's blocks come and go, matrix by matrix.

A level is block i of one matrix. Levels are ordered by i and then by the order of computation, and what is in memory is
always a beginning of that order: every matrix has as many blocks as every other, or one more, so more bytes are never
worse (BitStack, https://arxiv.org/abs/2410.23918, 3.3, sorts within the same rule). What a room has no place for is not
read when the model is loaded either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagoda.core.errors import BudgetError, ConfigError
from pagoda.core.units import format_bytes
from pagoda.weights.formats.bitstack import BitStack
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.schemes.pagoda import CODE, PREFIX

if TYPE_CHECKING:
    from pagoda.budget.ledger import Lease
    from pagoda.weights.source import TensorSource

    from .model import Model
    from .placement import Room

Level = tuple[int, str]
"""Number of a block, and its matrix."""


class BlockStacks:
    """The stacks of one model, from a checkpoint that `pagoda quantize` wrote in ``bitstack``; all blocks, until told.

    ``num_kept`` levels are in memory, or will be once the model is loaded (`fit`, then `begin`).
    """

    def __init__(self, model: Model, source: TensorSource) -> None:
        self._model, self._checkpoint = model, source.checkpoint
        self._lease: Lease | None = None
        depths: dict[str, int] = {}
        for matrix in model.shape.matrices:
            stored, kept = source.formats.get(f"{PREFIX}{matrix.name}"), model.quantization.of(matrix.name, matrix.role)
            if isinstance(stored, BitStack) and kept is not None and kept.same_codes(stored):
                depths[matrix.name] = stored.blocks
        self._levels: list[Level] = sorted(
            ((i, name) for name, blocks in depths.items() for i in range(blocks)), key=lambda level: level[0]
        )
        self._sizes = {level: self._bytes_of(level) for level in self._levels}
        self.num_kept = len(self._levels)
        self.most_bytes: int | None = None
        """Of the whole model, whatever a budget has room for; None: nobody said."""

    # Loading --------------------------------------------------------------------------------------------------------

    def fit(self, source: TensorSource, whole_bytes: int, room: Room | None) -> TensorSource:
        """The source without the levels that the room has no place for; of a model that takes ``whole_bytes``."""
        if room is not None and self._levels:
            least = whole_bytes - sum(size for (i, _), size in self._sizes.items() if i > 0)
            self.num_kept, _ = self._fitting(room.streaming - least)
        dropped = [part for level in self._levels[self.num_kept :] for part in self._names(level).values()]
        return source.without(dropped) if dropped else source

    @property
    def missing_bytes(self) -> int:
        """Of the levels that are not in memory."""
        return sum(self._sizes[level] for level in self._levels[self.num_kept :])

    def begin(self, lease: Lease | None) -> None:
        """The model is loaded, and ``lease`` holds its weights."""
        self._lease = lease

    # Moving ---------------------------------------------------------------------------------------------------------

    @property
    def num_levels(self) -> int:
        return len(self._levels)

    @property
    def placement(self) -> str:
        """Where the weights are, in words."""
        if self.num_kept == self.num_levels:
            return "resident"
        missing = format_bytes(self.missing_bytes)
        return f"bitstack: {self.num_kept} of {self.num_levels} blocks in memory, {missing} more with a larger budget"

    @property
    def least_bytes(self) -> int:
        """Of the whole model, with one block of each matrix."""
        above = sum(size for (i, _), size in self._sizes.items() if i > 0)
        return self._model.weight_bytes + self.missing_bytes - above

    @property
    def moves(self) -> bool:
        """Whether there is anything that may come and go."""
        return any(i > 0 for i, _ in self._levels)

    def bytes_in(self, num_bytes: int | None) -> int:
        """What ``resize`` would come to (None: with every block), and ``least_bytes`` where that is more."""
        least = self.least_bytes
        return least + self._fitting(sum(self._sizes.values()) if num_bytes is None else num_bytes - least)[1]

    def resize(self, num_bytes: int) -> int:
        """As many levels as ``num_bytes`` of weights hold; returns what the weights take then. Call between two steps.

        Raises ConfigError for a model without stacks, BudgetError for too few bytes or for more than the budget has,
        WeightsError where a block cannot be read again; nothing has changed then.
        """
        self.check(num_bytes)
        least = self.least_bytes
        kept, total = self._fitting(num_bytes - least)
        total += least
        if kept > self.num_kept:
            self._grow(kept, total)
        else:
            for level in self._levels[kept : self.num_kept]:
                self._drop(level)
            self.num_kept = kept
            if self._lease is not None:
                self._lease.resize(total)
        assert self._model.weight_bytes == total, "a block's bytes were counted wrong"
        return total

    def check(self, num_bytes: int | None) -> None:
        """Raises ConfigError for a model without stacks, BudgetError for too few bytes."""
        if not self._levels:
            raise ConfigError(
                "only weights in bitstack, written by `pagoda quantize --format bitstack`, change while a model runs"
            )
        least = self.least_bytes
        if num_bytes is not None and num_bytes < least:
            raise BudgetError(
                f"weights of {format_bytes(num_bytes)}: one block of each matrix takes {format_bytes(least)}; "
                f"the nearest that works is {-(-least >> 20)}MiB"
            )

    def _fitting(self, room: int) -> tuple[int, int]:
        """How many levels, and the bytes of those above the first of each matrix, which are there in any case."""
        count = total = 0
        for level in self._levels:
            more = self._sizes[level] if level[0] else 0
            if more and total + more > room:
                break
            count, total = count + 1, total + more
        return count, total

    def _grow(self, kept: int, total: int) -> None:
        before = self._model.weight_bytes
        if self._lease is not None:
            self._lease.resize(total)
        done: list[Level] = []
        try:
            for level in self._levels[self.num_kept : kept]:
                done.append(level)
                matrix = self._matrix(level)
                for name, part in self._names(level).items():
                    matrix.codes[name] = self._checkpoint.read(part).to(self._model.device)
                matrix.changed()
        except BaseException:
            for level in done:
                self._drop(level)
            if self._lease is not None:
                self._lease.resize(before)
            raise
        self.num_kept = kept

    def _drop(self, level: Level) -> None:
        matrix = self._matrix(level)
        for name in self._names(level):
            matrix.codes.pop(name, None)
        matrix.changed()

    def _matrix(self, level: Level) -> CodedMatrix:
        found = self._model.weights()[level[1]]
        assert isinstance(found, CodedMatrix), f"{level[1]} is no stack"
        return found

    def _names(self, level: Level) -> dict[str, str]:
        """The codes of a block -> their tensors in the checkpoint."""
        i, matrix = level
        return {code: f"{PREFIX}{matrix}{CODE}{code}" for code in (f"sign{i}", f"left{i}", f"right{i}")}

    def _bytes_of(self, level: Level) -> int:
        return sum(self._checkpoint.entries[part].num_bytes for part in self._names(level).values())
