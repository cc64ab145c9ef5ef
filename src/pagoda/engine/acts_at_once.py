"""Acts of many sequences at once: those whose policies say in the kernels' words what stays (`kernels.acts`).

In three strides: what each sequence's policy decides is judged by the kernels, pages are found for copies of what
others hold as well, and the kernels do it all. The plain twin is `Evictor._act`, one sequence after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..kernels.acts import able, choose_acts, new_act, num_copies, run_acts
from ..kv.policies.base import Held
from ..kv.store import Store
from .sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Planned:
    """An act of one sequence on runs of ``run`` pages; ``alive``: what it points to. ``done`` or not, in the end."""

    sequence: Sequence
    act: Any
    run: int
    next_act: int | None
    alive: object = None
    done: bool = False


def plan(sequence: Sequence, calibration: Mapping[str, Tensor]) -> Planned | None:
    """What the policy of a sequence decides, where it says so in the kernels' words. None where it has to be asked
    otherwise; then it was not asked yet. ``calibration``: of its eviction.
    """
    store, policy, state, num_seen = sequence.store, sequence.policy, sequence.policy_state, sequence.num_computed
    if policy.lossy is not None or not able(store.storage.pages):
        return None
    table = store.manager.table(sequence.seq_id)
    if table.num_rows == 1:
        ends = policy.ends(int(table.lens[0]), sequence.prompt_len)
        if ends is None or not 0 <= ends[0] < ends[1] <= table.lens[0]:
            return None
        act = new_act(table.bases, table.counts, table.lens, table.run)
        act.slide(*ends)
        return Planned(sequence, act, table.run, sequence.next_act(num_seen))
    next_act = sequence.next_act(num_seen)
    if table.run > 1 or not state.ranks(num_seen):
        return None
    lens = table.lens.tolist()
    fmt, most = table.fmt, max(lens)
    held = Held(
        num_seen, sequence.prompt_len, min(lens), most, (fmt.num_layers, fmt.num_kv_heads), fmt.k_dim, state.memory,
        calibration, lambda: state.received(most, store.storage.device),
    )  # fmt: skip
    ranking = policy.ranks(held)
    if ranking is None:
        return None
    act = new_act(table.bases, table.counts, table.lens, 1)
    return Planned(sequence, act, 1, next_act, state.rank(act, ranking, held, next_act, store.storage.device))


def run_at_once(
    store: Store, run: int, planned: list[Planned], no_room: Callable[[Sequence], None], num_threads: int = 1
) -> None:
    """Does them; ``no_room`` is told whose pages there was no room to copy: nothing of it has changed. An act that
    fails breaks its own sequence, and the others are done; a call for all of them that fails breaks those it was for.
    """
    try:
        store.run_copies()
        pages, layout, refs = store.storage.pages, store.storage.layout, store.manager.pool.refs
        choose_acts(pages, layout, refs, [one.act for one in planned], num_threads)
        able_to = [one for one in planned if not _failed(one)]
        if _run(store, run, able_to):
            return
    except Exception as error:  # of none of them in particular: who is done goes on
        for one in planned:
            if not one.done:
                one.sequence.breaks(error, "evicting")
        return
    for one in able_to:  # one after the other, which may take what the one before gave up
        try:
            if not _run(store, run, [one]):
                no_room(one.sequence)
        except Exception as error:
            one.sequence.breaks(error, "evicting")


def _run(store: Store, run: int, planned: list[Planned]) -> bool:
    """False, and nothing is done, where there is no room for copies."""
    manager, storage = store.manager, store.storage
    leaving = [one.sequence.seq_id for one in planned if one.act.dropped]

    acts = [one.act for one in planned]
    fresh = manager.room_for_copies(leaving, run, lambda: num_copies(manager.pool.refs, acts))  # growth may move them
    if fresh is None:
        return False
    taken = 0
    try:
        taken = run_acts(storage.pages, storage.layout, manager.pool.refs, acts, fresh)
    finally:
        manager.pool.unref_runs(fresh[taken:], run)
        for one in planned:
            manager.pool.take_back(one.act.freed, run)
            manager.pool.take_back(one.act.freed_pages, 1)
    for one in planned:
        if _failed(one):
            continue
        act, sequence = one.act, one.sequence
        manager.was_cut(sequence.seq_id, act.dropped, act.num_cut, act.room, act.tail_owned)
        sequence.policy_state.acted_at(sequence.num_computed)
        sequence.policy_state.moved(sequence.num_computed, one.next_act, changed=act.dropped > 0)
        one.done = True
    return True


def _failed(one: Planned) -> bool:
    if one.act.error:
        one.sequence.breaks(RuntimeError(one.act.error), "evicting")
    return bool(one.act.error)
