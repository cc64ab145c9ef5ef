"""What page selections note of a sequence's full pages, and who notes it while a prompt is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, prod

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops.page_marks import MarkAids
from ..kernels.shelves import Shelves
from ..kv.choices import Choice
from ..kv.policies._pages import SCORED, PageSelection
from ..kv.table import PageTable

NOTHING = torch.empty(0)
LINE = 64
"""Bytes of a cache line."""
LEAST_BESIDE = 1024
"""Bytes of a tensor that is worth a place beside the sketches."""


@dataclass(slots=True)
class Standing:
    """A choice that stands while these pages are ``full`` (`PageTable.lens` in pages, those of all rows side by side).
    ``held`` and ``read``: pages of a step by it; ``scored``: bool [L, H], heads that score where scores are made;
    ``room``: of pages, where what it points to lies; ``alive``: what it points to and nobody else may hold;
    ``num_bytes`` of the notes, once asked for.

    Of what is another in every step: ``turns`` says whether queries are turned, ``turn`` [n, L, D] by how much from the
    ``first`` position on; one scoring serves ``steps``, and ``waiting`` are notes of the layers that have none yet.
    """

    full: int | bytes
    choice: Choice
    held: int
    read: int
    scored: np.ndarray
    room: int
    alive: Sequence[MarkAids]
    turns: bool = False
    turn: Tensor | None = None
    first: int = 0
    places: np.ndarray | None = None  # int64 [L], of the first position's
    steps: int = 1
    waiting: Mapping[int, dict[str, Tensor]] = field(default_factory=dict)
    scores: bool | None = None  # whether all that score do so; None: those that wait
    num_bytes: int = -1

    def renew(self, position: int) -> bool:
        """Makes the choice that of a step at ``position``. False, and nothing done, where its turn is not known."""
        if self.turns:
            at = position - self.first
            if self.turn is None or not 0 <= at < len(self.turn):
                return False
            np.add(self.places, 4 * at * self.turn[0].numel(), out=self.choice.turn)
        if self.steps > 1:
            scores = position % self.steps == 0
            if scores is not self.scores or self.waiting:
                self._let_score(scores)
        return True

    def _let_score(self, scores: bool) -> None:
        """All layers, or those that wait."""
        fresh = self.choice.fresh
        fresh[:] = self.scored if scores else 0
        for layer, memory in self.waiting.items():
            fresh[layer], memory[SCORED] = self.scored[layer], NOTHING
        self.scores, self.waiting = None if self.waiting else scores, {}

    def turn_from(self, position: int, turn: Tensor) -> None:
        """``turn`` is known from this position on."""
        self.turn, self.first = turn, position
        self.places = turn.data_ptr() + 4 * turn.shape[-1] * np.arange(turn.shape[1], dtype=np.int64)


def full_pages(table: PageTable) -> int | bytes:
    """What a choice stands for: how many pages of each row are full."""
    lens, size = table.lens, table.fmt.page_size
    return int(lens[0]) // size if table.num_rows == 1 else (lens // np.int32(size)).tobytes()


class Slab:
    """What is noted of one sequence, layer after layer on huge pages: a step reads little of each, and on small pages
    half of that time went into finding where it lies (32 sequences of 400 tokens: a choice by `sparq` 7.8 us, 4.4).
    """

    def __init__(self, shelves: Shelves, num_bytes: int) -> None:
        self._bytes, self._used = shelves.take(num_bytes), 0

    @property
    def unused(self) -> int:
        """Bytes."""
        return self._bytes.numel() - self._used

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Zeros; None where there is no room."""
        num_bytes = _aligned(prod(shape) * dtype.itemsize)
        if num_bytes > self.unused:
            return None
        first, self._used = self._used, self._used + num_bytes
        return self._bytes[first : first + prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // LINE) * LINE


class Notes:
    """What a selection noted of one sequence: sketches of full pages by layer, and its own memory."""

    def __init__(self, num_layers: int, num_heads: int, shelves: Shelves) -> None:
        self.shelves = shelves
        self.sketches: list[Tensor | None] = [None] * num_layers
        self.sketched = np.zeros((num_layers, num_heads), np.int64)  # pages of each head that are in the sketches
        self.memory: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
        self.pages_read = self.pages_held = 0
        self._slab: Slab | None = None  # where the next layer's sketches go
        self.standing: Standing | None = None  # until what its addresses point to is elsewhere
        self.spared: tuple[int | bytes, int] | None = None  # for what all pages are read (`full_pages`), and how many

    def stands(self, full: int | bytes) -> Standing | None:
        """The choice that was made for so many pages (`full_pages`), where it still stands."""
        standing = self.standing
        return standing if standing is not None and standing.full == full else None

    def count(self, standing: Standing) -> None:
        """One more step by it."""
        self.pages_held += standing.held
        self.pages_read += standing.read

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors. They are counted once for a choice that stands: of 32 sequences at every step, that was
        2 % of the step.
        """
        standing = self.standing
        if standing is None:
            return self._count_bytes()
        if standing.num_bytes < 0:
            standing.num_bytes = self._count_bytes()
        return standing.num_bytes

    def _count_bytes(self) -> int:
        held = sum(sketch.nbytes for sketch in self.sketches if sketch is not None)
        held += 0 if self._slab is None else self._slab.unused
        if self.standing is not None and self.standing.turn is not None:
            held += self.standing.turn.nbytes
        return held + sum(value.nbytes for memory in self.memory for value in memory.values())

    def room(self, layer: int, end: int, columns: bool) -> Tensor:
        """The layer's sketches, with room for ``end`` pages of every head; ``columns`` lie channel by channel."""
        held = self.sketches[layer]
        assert held is not None
        if held.shape[1] < end:
            self._grow(layer, end, held.shape[2:], held, columns)
        grown = self.sketches[layer]
        assert grown is not None
        return grown

    def write(self, layer: int, heads: slice, first: int, made: Tensor, columns: bool = False) -> None:
        """Sketches ``made`` [h, n, …] of the pages ``first`` … of these heads; ``columns`` as for ``room``."""
        end = first + made.shape[1]
        if self.sketches[layer] is None:
            self._grow(layer, end, made.shape[2:], made, columns)
        self.room(layer, end, columns)[heads, first:end] = made

    def _grow(self, layer: int, end: int, shape: tuple[int, ...], like: Tensor, columns: bool) -> None:
        page = like.dtype.itemsize * (shape[1] if columns else prod(shape))  # in what each channel, or each head, has
        whole_lines = min(8, LINE // gcd(LINE, page))  # so many pages fill lines, the next one's begins with one, too
        room = -(-(end + end // 4 + 4) // whole_lines) * whole_lines  # eight at most: more took half of small notes
        before, whole = self.sketches[layer], (self.sketched.shape[1], room, *shape)
        heads, pages, *rest = whole
        laid = (heads, rest[0], pages, rest[1]) if columns else whole
        if like.device.type == "cpu":
            grown = self._zeros(layer, laid, like)
            for name, value in self._beside(layer).items():
                if self._slab is not None and (place := self._slab.place(tuple(value.shape), value.dtype)) is not None:
                    self.memory[layer][name] = place.copy_(value)
        else:
            grown = like.new_zeros(laid)
        grown = grown.transpose(1, 2) if columns else grown
        if before is not None:
            grown[:, : before.shape[1]] = before
        self.sketches[layer], self.standing = grown, None

    def _zeros(self, layer: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        found = None if self._slab is None else self._slab.place(shape, like.dtype)
        if found is None:
            beside = sum(_aligned(value.nbytes) for value in self._beside(layer).values())
            self._slab = Slab(self.shelves, len(self.sketches) * (_aligned(prod(shape) * like.dtype.itemsize) + beside))
            found = self._slab.place(shape, like.dtype)
        assert found is not None
        return found

    def _beside(self, layer: int) -> dict[str, Tensor]:
        """Of the policy's memory, what a step reads beside the sketches: it lies there, too."""
        return {name: value for name, value in self.memory[layer].items() if value.nbytes >= LEAST_BESIDE}

    def fork(self) -> Notes:
        """An independent copy."""
        twin = Notes(*self.sketched.shape, self.shelves)
        twin.sketches = [None if s is None else s.clone() for s in self.sketches]
        twin.sketched = self.sketched.copy()
        twin.memory = [{name: value.clone() for name, value in m.items()} for m in self.memory]
        return twin

    def forget_pages(self) -> None:
        """The pages' content moved (an eviction acted)."""
        self.__init__(*self.sketched.shape, self.shelves)  # type: ignore[misc]


class PageNoter:
    """One sequence of a prompt under way, whose selection is ``remote``: sketches of pages as soon as they are full."""

    def __init__(self, policy: PageSelection, notes: Notes, learned: Mapping[str, Tensor]) -> None:
        assert policy.remote
        self._policy, self._notes, self._learned = policy, notes, learned
        self._by_channel = policy.judged_by is not None and policy.judged_by.marks == "columns"

    def first(self, layer: int, heads: slice) -> int:
        """As `kv.view.Noter`."""
        return int(self._notes.sketched[layer, heads].min())

    def note(self, layer: int, heads: slice, first: int, keys: Tensor) -> None:
        """As `kv.view.Noter`."""
        notes = self._notes
        learned = {name: of_heads(values[layer], heads) for name, values in self._learned.items()}
        made = self._policy.sketch_as(keys, notes.memory[layer], first, learned)
        notes.write(layer, heads, first, made, self._by_channel)
        notes.sketched[layer, heads] = first + keys.shape[1]


def of_heads(learned: Tensor, heads: slice | np.ndarray) -> Tensor:
    """What these heads were calibrated to; what is of all of them is one for all."""
    return learned if len(learned) == 1 else learned[heads]
