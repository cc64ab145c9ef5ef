"""One step over sequences whose KV lies in a lower tier.

Whole heads (prompts, exact decoding: HeadInfer, arXiv:2502.12574) go through two buffers that take turns. All of it is
known when the step begins, so while one group of heads is attended, and while the model computes between two layers,
the next groups are read::

    reading     │ layer 0, heads 0-1 │ layer 0, heads 2-3 │ layer 1, heads 0-1 │ …
    attending                        │ layer 0, heads 0-1 │ layer 0, heads 2-3 │ …

Sequences that choose their pages (`Chooser`) read only those, once their queries are there, and find most of them among
the hot pages of the steps before; what they judge pages by is noted while their prompts pass (`Noter`). The step's own
K and V are written to the window first and to the tier from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import accumulate, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...kernels.moving import put
from ...kernels.ops import kv_write, paged_attention
from ...kernels.ops._paged import gather
from ..table import PageTable
from .chosen import attend_chosen
from .groups import Group, Member, divide, of_heads
from .storage import OffloadedStorage
from .tier_file import Failures

if TYPE_CHECKING:
    from ..choices import Chooser
    from ..watching import Noter, Received


NOTED_PAGES = 16
"""Whose keys are looked at together while a prompt passes: few, which torch does in one thread (`kernels.moving`)."""


class OffloadView:
    """The KV view (see ``models.layers.step.KVView``). Sequence s brings ``q_lens[s]`` tokens, side by side;
    ``wide``: as `StepView`.

    ``close`` ends the step: only then everything is in the tier, and ``failures`` says which sequences (by index) lost
    theirs, and why; what these attended to is worth nothing.
    """

    def __init__(
        self,
        storage: OffloadedStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        choosers: Mapping[int, Chooser] | None = None,
        noters: Mapping[int, Noter] | None = None,
        wide: Sequence[bool] | None = None,
    ) -> None:
        assert all(table.num_rows == 1 for table in tables), "offloaded sequences have tables of whole blocks"
        storage.settle()
        self._storage, self._choosers, self._noters = storage, choosers or {}, noters or {}
        self.received: list[Received] = []
        self.added: list[int] = []
        self.failures: dict[int, str] = {}
        self._starts = [0, *accumulate(q_lens)]
        members = [
            Member(s, table.bases[0, : storage.fmt.blocks_for(held + num)], held, num, wide is not None and wide[s])
            for s, (table, num) in enumerate(zip(tables, q_lens, strict=True))
            for held in (int(table.lens[0]),)
        ]
        self._find_lost(members)
        self._groups = divide(storage, [m for m in members if m.index not in self._choosers], self._starts)
        self._choosing = [member for member in members if member.index in self._choosers]
        self._reads: dict[int, Future[Failures] | None] = {}
        self._writes: list[tuple[Group, Future[Failures]]] = []
        self._num_items = len(self._groups) * storage.fmt.num_layers
        for item in range(min(2, self._num_items)):
            self._read(item)

    def _find_lost(self, members: Sequence[Member]) -> None:
        storage, per_block = self._storage, self._storage.fmt.pages_per_block
        for member in members if storage.lost else ():
            held = storage.fmt.blocks_for(member.held)
            blocks = (member.blocks // per_block).tolist()
            storage.lost -= set(blocks[held:])  # they begin anew
            if storage.lost.intersection(blocks[:held]):
                self.failures[member.index] = storage.tier.why(5, writes=True)

    def arrays(self) -> None:
        """Every layer calls ``attend``."""

    in_program = True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        """As ``StepView.attend``."""
        return self._attend(layer, q, k, v, q.new_empty(len(q), q.shape[1], self._storage.fmt.v_dim), options)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """As ``StepView.attend_latent``."""
        options = {"scale": scale, "v_dim": v_dim}
        return self._attend(layer, q, latent, None, q.new_empty(len(q), q.shape[1], v_dim), options)

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, out: Tensor, options: Mapping[str, object]
    ) -> Tensor:
        for number, group in enumerate(self._groups):
            self._attend_group(layer * len(self._groups) + number, group, q, k, v, out, options)
        if self._choosing:
            tokens = torch.tensor([self._starts[m.index] for m in self._choosing])
            parts = (q[tokens], k[tokens], None if v is None else v[tokens])
            choosers = [self._choosers[member.index] for member in self._choosing]
            found = attend_chosen(self._storage, layer, self._choosing, choosers, *parts, options, self.failures)
            out[tokens] = found
        return out

    def _attend_group(
        self, item: int, group: Group, q: Tensor, k: Tensor, v: Tensor | None, out: Tensor,
        options: Mapping[str, object],
    ) -> None:  # fmt: skip
        storage, heads = self._storage, group.heads
        layer, per_head = item // len(self._groups), q.shape[1] // k.shape[1]
        queries = slice(heads.start * per_head, heads.stop * per_head)
        buffer, layout = storage.buffers[item % 2], storage.layout
        self._wait(item, group)
        new_k, new_v = (None if x is None else x[group.rows, heads] for x in (k, v))
        assert new_k is not None
        kv_write(new_k, new_v, buffer, layout, group.ids, group.slots)
        self._write(item, layer, group)
        mine = q[group.rows, queries]
        found = paged_attention(mine, buffer, layout, group.table, **of_heads(options, queries))  # type: ignore[arg-type]
        if isinstance(group.rows, slice):
            put(out[group.rows, queries], found)
        else:
            out[group.rows, queries] = found
        self._note_pages(layer, group, buffer)
        if item + 2 < self._num_items:
            self._read(item + 2)

    def _note_pages(self, layer: int, group: Group, buffer: Tensor) -> None:
        """Of prompts whose sequences will choose pages: later their keys would have to come from the tier."""
        fmt, heads = self._storage.fmt, group.heads
        for member, at in zip(group.members, group.firsts, strict=True):
            noter, full = self._noters.get(member.index), (member.held + member.num) // fmt.page_size
            if noter is None or (first := noter.first(layer, heads)) >= full:
                continue
            for head, begin in product(range(heads.start, heads.stop), range(first, full, NOTED_PAGES)):
                end = min(full, begin + NOTED_PAGES)
                place = at + (head - heads.start) * group.num_pages
                keys, _ = gather(
                    buffer, self._storage.layout, torch.arange(place + begin, place + end)[None], torch.float32
                )
                noter.note(layer, slice(head, head + 1), begin, keys.unflatten(1, (end - begin, fmt.page_size)))

    def _read(self, item: int) -> None:
        storage = self._storage
        layer, number = divmod(item, len(self._groups))
        runs = self._groups[number].reads
        if not len(runs.places):
            self._reads[item] = None
            return
        step = layer * storage.fmt.num_kv_heads * storage.tier.head_step
        memory = runs.offsets + storage.buffers[item % 2].data_ptr()
        self._reads[item] = future = storage.tier.submit(runs.places + step, runs.sizes, memory, writes=False)
        storage.pending.append(future)

    def _write(self, item: int, layer: int, group: Group) -> None:
        storage, runs = self._storage, group.writes
        heads = layer * storage.fmt.num_kv_heads
        storage.hot.forget(group.written + heads)
        memory = runs.offsets + storage.buffers[item % 2].data_ptr()
        places = runs.places + heads * storage.tier.head_step
        future = storage.tier.submit(places, runs.sizes, memory, writes=True)
        storage.pending.append(future)
        self._writes.append((group, future))

    def _wait(self, item: int, group: Group) -> None:
        """What the group reads is in its buffer, and what was written from there before is in the tier."""
        future, counters = self._reads.pop(item), self._storage.counters
        counters.buffers += 1
        if future is None:
            self._storage.settle()
            return
        if not future.done():
            started = time.perf_counter()
            future.exception()
            counters.waits += 1
            counters.wait_seconds += time.perf_counter() - started
        self._note(group.reads.member, future.result(), writes=False)

    def _note(self, whose: np.ndarray, failed: Failures, *, writes: bool) -> None:
        for run, number in failed:
            self.failures.setdefault(int(whose[run]), self._storage.tier.why(number, writes=writes))

    def close(self) -> None:
        """The step is over: waits until all that it wrote is in the tier."""
        for group, future in self._writes:
            self._note(group.writes.member, future.result(), writes=True)
        self._writes.clear()
        self._storage.settle()
