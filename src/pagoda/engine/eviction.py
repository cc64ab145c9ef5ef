"""After a step the policies act: slots that they drop are compacted away, and the tail pages are free for others."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops import evict
from ..kernels.torch_threads import torch_threads
from ..kv.compaction import Gaps
from ..kv.pages import Int32s
from ..kv.policies._inputs import Inputs, same
from ..kv.policies._layers import LossyLayers
from ..kv.policies.base import Choice, Decision, Need
from ..kv.read import hash_slots, read_part, read_slots, weigh, window_sums, write_slots
from ..kv.storage import PageStorage
from ..kv.store import Store
from ..kv.table import PageTable, SlotMoves
from ..schedule.scheduler import Scheduler
from .acts_at_once import Planned, plan, run_at_once
from .calibrations import Calibrations
from .counters import Counters
from .observing import observe
from .policy_state import PolicyState, Rows
from .runner import Piece, StepResult
from .sequence import Sequence

Named = tuple[int | None, int | None]
"""A layer and a head; None: all."""


class Evictor:
    """Runs the evictions of a step's sequences. Called after the step's tokens were committed.

    A policy acts at the tokens that its ``next_act`` names, whoever computes them and in which chunks, so that a
    recomputed sequence passes through the same states (see ``Sequence.chunk_end``). Where shared pages would have to be
    copied and no page is free, the sequence is preempted instead and leaves the step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        counters: Counters,
        calibrations: Calibrations,
    ) -> None:
        self._scheduler, self._counters, self.calibrations = scheduler, counters, calibrations
        self._num_threads = 1  # of a step

    def apply(self, result: StepResult) -> list[Sequence]:
        """Show each policy what the step brought, and let those act whose time has come. Returns sequences whose method
        broke: their requests are to be ended.
        """
        if result.plain:
            return []
        started = time.perf_counter()
        due = []
        for piece in result.pieces:
            sequence, start = piece.sequence, piece.start
            act = sequence.next_act(start)
            if act is not None and start + piece.num_tokens >= act:  # past it only where pages are encoded within steps
                due.append(piece)
            if sequence.selects and start >= sequence.prompt_len:
                self._count(sequence.policy_state)
        busy = due or (result.tap is not None and result.tap.spans)
        # In an act torch's threads stay out of it, all but one: they would wake for each of a hundred small operations
        # while the kernels' pool still has the cores. An act on 2000 tokens of lantern takes 35 ms so; with two, on
        # busy cores, a second.
        with torch_threads(1) if busy else nullcontext(1) as self._num_threads:
            observe(result, due)
            self._act_all(due, result)
        failed = [piece.sequence for piece in result.pieces if piece.sequence.broken]
        for sequence in failed:
            result.drop(sequence)
        self._counters.policy_seconds += time.perf_counter() - started
        return failed

    def _act_all(self, due: list[Piece], result: StepResult) -> None:
        """Evictions, then encodings: first those that the kernels do at once, then one after the other. The moves
        of one run before the next acts, which may be given the pages that have just become free here, or their bytes. A
        method that breaks takes its own request along, not those that it met.
        """
        at_once: dict[tuple[Store, int], list[Planned]] = {}
        others = []
        for piece in due:
            sequence = piece.sequence
            try:
                if not sequence.policy.evicts(piece.start, sequence.prompt_len):
                    continue
                planned = plan(sequence, self._calibration(sequence))
                if planned is None:
                    others.append(sequence)
                else:
                    at_once.setdefault((sequence.store, planned.run), []).append(planned)
            except Exception as error:
                sequence.breaks(error, "evicting")
        for (store, run), acts in at_once.items():
            self._run_at_once(store, run, acts, result)
        for sequence in others:
            try:
                self._act(sequence, result)
            except Exception as error:
                sequence.breaks(error, "evicting")
        for piece in due:
            sequence = piece.sequence
            if sequence.policy.windowed is not None and sequence.num_computed and not sequence.broken:
                try:
                    _encode(sequence)
                except Exception as error:
                    sequence.breaks(error, "encoding pages")

    def _run_at_once(self, store: Store, run: int, planned: list[Planned], result: StepResult) -> None:
        run_at_once(store, run, planned, lambda one: self._computes_again(one, result), self._num_threads)
        for one in planned:
            self._counters.policy_acts += one.done and one.act.dropped > 0
            self._counters.slots_dropped += one.act.dropped if one.done else 0

    def _computes_again(self, sequence: Sequence, result: StepResult) -> None:
        """There is no page for a copy."""
        self._scheduler.preempt(sequence, unsampled=True)
        result.drop(sequence)

    def _count(self, state: PolicyState) -> None:
        notes = state.notes
        self._counters.pages_read += notes.pages_read
        self._counters.pages_held += notes.pages_held
        notes.pages_read = notes.pages_held = 0

    def _act(self, sequence: Sequence, result: StepResult) -> None:
        store, manager = sequence.store, sequence.store.manager
        lossy, table = sequence.policy.lossy, _lossy_part(sequence)
        ends = sequence.policy.ends(int(table.lens[0]), sequence.prompt_len)
        if ends is not None:
            self._keep_ends(sequence, int(table.lens[0]), *ends, result)
            return
        inputs = self._inputs(sequence, table)
        decision = sequence.policy.act(inputs)
        done = lossy is None and isinstance(decision, Choice) and self._choose(sequence, decision)
        keeps_all = done or decision is None or bool(decision.keep.all())
        sequence.policy_state.acts(sequence.num_computed)  # what a choice may look at until it is made begins anew
        if keeps_all:
            return
        assert decision is not None
        self._counters.policy_acts += 1
        dropped = manager.num_dropped_slots
        made: SlotMoves | Gaps | None
        if decision.keep.dim() == 3 and table.run == 1 and lossy is None:
            mask = (decision.keep & inputs.valid).flatten(0, 1).cpu().numpy()
            made = manager.keep_mask(sequence.seq_id, mask, rewrite=bool(decision.writes))
        else:
            kept = _of_layers(lossy, _kept(decision.keep, inputs.lens))
            made = manager.keep_many(sequence.seq_id, kept, rewrite=bool(decision.writes))
        if made is None:
            self._computes_again(sequence, result)
            return
        tail = sequence.policy_state.tail
        if tail is not None:  # all raw so far: there is nothing in the pages to be moved
            tail.keep(decision.keep)
        else:
            _run(store, made)
        if decision.writes:
            _write(decision, store, _lossy_part(sequence))  # whose rows are others now
        self._counters.slots_dropped += manager.num_dropped_slots - dropped
        sequence.policy_state.keep(decision.keep, inputs, sequence.next_act(sequence.num_computed))

    def _choose(self, sequence: Sequence, choice: Choice) -> bool:
        """The act in one call of the kernels, to the same slots; False, and nothing is done, where pages are shared."""
        state, store, manager = sequence.policy_state, sequence.store, sequence.store.manager
        act = sequence.next_act(sequence.num_computed)
        rows = manager.own_rows(sequence.seq_id)
        if rows is None or state.tail is not None:
            return False
        if state.numbers(sequence.num_computed, act):
            state.number(sequence.num_computed, choice.num_slots, choice.lens)
        store.run_copies()
        values = state.moving(act)
        dropped = manager.shorten(
            sequence.seq_id, _evict(store.storage, state.rows_of(rows, store.storage.device), choice, values)
        )
        for one in choice.writes:
            table = manager.table(sequence.seq_id)
            write_slots(store.storage, table, one.layers, one.heads, one.slots, one.k, one.v)
        state.moved(sequence.num_computed, act, changed=dropped > 0 or bool(choice.writes))
        self._counters.policy_acts += dropped > 0
        self._counters.slots_dropped += dropped
        return True

    def _keep_ends(self, sequence: Sequence, held: int, sinks: int, first: int, result: StepResult) -> None:
        """An act of a method that looks at nothing, and remembers nothing, on heads of ``held`` slots."""
        manager = sequence.store.manager
        dropped = manager.num_dropped_slots
        if (lossy := sequence.policy.lossy) is None:
            made = manager.keep_ends(sequence.seq_id, sinks, first)
        else:
            slots = np.arange(held, dtype=np.int32)
            stay = slots[(slots < sinks) | (slots >= first)]
            made = manager.keep_many(sequence.seq_id, _of_layers(lossy, {(None, None): stay}))
        if made is None:
            self._computes_again(sequence, result)
            return
        _run(sequence.store, made)
        if sequence.policy.selection is not None and manager.num_dropped_slots > dropped:
            sequence.policy_state.notes.forget_pages()
        self._counters.policy_acts += manager.num_dropped_slots > dropped
        self._counters.slots_dropped += manager.num_dropped_slots - dropped

    def _inputs(self, sequence: Sequence, table: PageTable) -> Inputs:
        fmt, storage, held = table.fmt, sequence.store.storage, table.lens.tolist()
        fewest, most = min(held), max(held)
        inputs = sequence.policy_state.inputs(
            sequence.num_computed,
            sequence.prompt_len,
            sequence.group.request.seed,
            same(fmt.num_layers, fmt.num_kv_heads, most, storage.device) if fewest == most else _lens(table, storage),
            fewest,
            most,
        )
        inputs.calibration = self._calibration(sequence)
        inputs.slot_bytes = 4 * fmt.num_kv_heads * (fmt.k_dim + fmt.v_dim)
        tail = sequence.policy_state.tail
        if tail is not None:
            inputs.read = lambda layer: tail.held(layer, inputs.num_slots)
        else:
            inputs.read = lambda layer: read_slots(storage, table, layer, inputs.num_slots)
            inputs.read_part = partial(read_part, storage, table)
            inputs.weigh_slots = partial(weigh, storage, table)
            inputs.hash_slots = partial(hash_slots, storage, table)
            inputs.window_sums = partial(self._window_sums, storage, table)
        return inputs

    def _calibration(self, sequence: Sequence) -> Mapping[str, Tensor]:
        """Of its eviction, if that wants any."""
        eviction = sequence.policy.eviction
        wanted = eviction is not None and Need.CALIBRATION in eviction.needs
        return self.calibrations.load(sequence.policy.names[0]) if wanted else {}

    def _window_sums(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The one part of an act that is worth all threads, which are the kernels' own."""
        with torch_threads(self._num_threads):
            return window_sums(*args)


def _lossy_part(sequence: Sequence) -> PageTable:
    """The sequence's table as its eviction sees it."""
    table, lossy = sequence.store.manager.table(sequence.seq_id), sequence.policy.lossy
    return table if lossy is None else table.of_layers(lossy.index)


def _of_layers(lossy: LossyLayers | None, kept: dict[Named, np.ndarray]) -> dict[Named, np.ndarray]:
    """What stays of the layers that a policy sees, by the model's numbers of them."""
    if lossy is None:
        return kept
    if (None, None) in kept:
        return {(layer, None): kept[None, None] for layer in lossy.index}
    return {(lossy.index[layer], head): slots for (layer, head), slots in kept.items() if layer is not None}


def _lens(table: PageTable, storage: PageStorage) -> Tensor:
    """int64 [L, H]: slots of every head."""
    lens = np.repeat(table.lens.astype(np.int64), table.run)
    return torch.from_numpy(lens).view(table.fmt.num_layers, table.fmt.num_kv_heads).to(storage.device)


def _encode(sequence: Sequence) -> None:
    """Pages that lie whole before the raw window are encoded."""
    codec, state, store = sequence.policy.windowed, sequence.policy_state, sequence.store
    assert codec is not None
    assert state.tail is not None
    if sequence.policy.encodes_within:  # done, up to the last act
        act = sequence.num_computed // codec.every * codec.every
        return state.tail.drop(codec.num_encoded(act, store.fmt.page_size), sequence.num_computed)
    queries = state.newest_queries(sequence.num_computed, codec.probes)
    table = store.manager.table(sequence.seq_id)
    shown = None if queries is None else queries.float()
    state.tail.encode(codec, store.storage, table, store.learn(), shown, state.scale)


def _write(decision: Decision | Choice, store: Store, table: PageTable) -> None:
    """Merged content goes to where its slot is now."""
    for one in decision.writes:
        before = decision.keep[one.layers, one.heads].cumsum(-1).gather(-1, one.slots[:, None])[:, 0]
        write_slots(store.storage, table, one.layers, one.heads, before - 1, one.k, one.v)


def _evict(storage: PageStorage, rows: Rows, choice: Choice, values: list[Tensor]) -> Int32s:
    """What is chosen stays in pages that nobody shares, and of what is remembered of each slot, ``values`` [L, H, C]:
    slots that stayed, int32 [L * H].
    """
    evict(
        storage.pages, storage.layout, rows.pages, choice.lens, choice.budgets, choice.num_slots, rows.left,
        scores=choice.scores, sinks=choice.sinks, recent=choice.recent, least=choice.least, pool=choice.pool,
        values=values,
    )  # fmt: skip
    return rows.lens.copy() if rows.lens is not None else rows.left.cpu().numpy()


def _run(store: Store, moves: SlotMoves | Gaps) -> None:
    store.run_copies()
    store.storage.run_moves(moves)


def _kept(keep: Tensor, lens: Tensor) -> dict[Named, np.ndarray]:
    """The mask as slots by (layer, head), for what loses any; see ``KVManager.keep_many``."""
    mask = keep.cpu().numpy()
    if mask.ndim == 1:
        return {(None, None): np.flatnonzero(mask).astype(np.int32)}
    held = lens.cpu().numpy()
    if mask.ndim == 2:
        mask, held = mask[:, None], held[:, :1]
    mask = mask & (np.arange(mask.shape[-1]) < held[..., None])
    counts = mask.sum(-1)
    slots = np.nonzero(mask)[2].astype(np.int32)
    ends = counts.ravel().cumsum()
    kept: dict[Named, np.ndarray] = {}
    for row, (layer, head) in enumerate(np.ndindex(counts.shape)):
        if counts[layer, head] < held[layer, head]:
            mine = slots[ends[row] - counts[layer, head] : ends[row]]
            kept[layer, head if keep.dim() == 3 else None] = mine
    return kept
