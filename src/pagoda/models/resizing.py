"""Weights that grow and shrink while a model runs: bitstack's blocks come and go, matrix by matrix.

A level is block i of one matrix. Levels are ordered by i and then by the order of computation, and what is in memory is
always a beginning of that order: every matrix has as many blocks as every other, or one more, so more bytes are never
worse (BitStack, https://arxiv.org/abs/2410.23918, 3.3, sorts within the same rule).
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
    from pagoda.weights.reader import Checkpoint

    from .model import Model

Level = tuple[int, str]
"""Number of a block, and its matrix."""


class BlockStacks:
    """The stacks of one model, loaded whole from a checkpoint that `pagoda quantize` wrote in ``bitstack``."""

    def __init__(self, model: Model, checkpoint: Checkpoint, lease: Lease | None) -> None:
        self._model, self._checkpoint, self._lease = model, checkpoint, lease
        found = {n: w for n, w in model.weights().items() if isinstance(w, CodedMatrix)}
        self._stacks = {n: w for n, w in found.items() if isinstance(w.format, BitStack) and self._is_stored(n)}
        depths = {name: w.format.blocks for name, w in self._stacks.items() if isinstance(w.format, BitStack)}
        self._levels: list[Level] = sorted(
            ((i, name) for name, blocks in depths.items() for i in range(blocks)), key=lambda level: level[0]
        )
        self._sizes = {level: self._bytes_of(level) for level in self._levels}
        self.num_kept = len(self._levels)

    @property
    def num_levels(self) -> int:
        return len(self._levels)

    @property
    def least_bytes(self) -> int:
        """Of the whole model, with one block of each matrix."""
        whole = self._model.weight_bytes + sum(self._sizes[level] for level in self._levels[self.num_kept :])
        return whole - sum(size for (i, _), size in self._sizes.items() if i > 0)

    def resize(self, num_bytes: int) -> int:
        """As many levels as ``num_bytes`` of weights hold; returns what the weights take then. Call between two steps.

        Raises ConfigError for a model without stacks, BudgetError for too few bytes or for more than the budget has,
        WeightsError where a block cannot be read again; nothing has changed then.
        """
        if not self._levels:
            raise ConfigError(
                "only weights in bitstack, written by `pagoda quantize --format bitstack`, change while a model runs"
            )
        least = self.least_bytes
        if num_bytes < least:
            raise BudgetError(
                f"weights of {format_bytes(num_bytes)}: one block of each matrix takes {format_bytes(least)}; "
                f"the nearest that works is {-(-least >> 20)}MiB"
            )
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

    def _fitting(self, room: int) -> tuple[int, int]:
        """How many levels, and the bytes of those above the first of each matrix."""
        count = total = 0
        for level in self._levels:
            more = self._sizes[level] if level[0] else 0
            if total + more > room:
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
                for name, part in self._names(level).items():
                    self._stacks[level[1]].codes[name] = self._checkpoint.read(part)
        except BaseException:
            for level in done:
                self._drop(level)
            if self._lease is not None:
                self._lease.resize(before)
            raise
        self.num_kept = kept

    def _drop(self, level: Level) -> None:
        for name in self._names(level):
            self._stacks[level[1]].codes.pop(name, None)

    def _names(self, level: Level) -> dict[str, str]:
        """The codes of a block -> their tensors in the checkpoint."""
        i, matrix = level
        return {code: f"{PREFIX}{matrix}{CODE}{code}" for code in (f"sign{i}", f"left{i}", f"right{i}")}

    def _is_stored(self, matrix: str) -> bool:
        return self._checkpoint.entries.keys() >= set(self._names((0, matrix)).values())

    def _bytes_of(self, level: Level) -> int:
        return sum(self._checkpoint.entries[part].num_bytes for part in self._names(level).values())
