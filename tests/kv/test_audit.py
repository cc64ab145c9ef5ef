"""The auditor sees each kind of imbalance and names it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from pagoda.core.types import Granularity
from pagoda.kv.audit import audit

from .world import World, fmt_of


def busy_world() -> World:
    """Two sequences, cached prefixes, a split block, blocks in every state."""
    world = World(fmt_of(2, 2, page_size=2), 12, max_blocks=14)
    one = world.admit([1, 2, 3, 4, 5], Granularity.SEQUENCE)
    two = world.admit([7, 8, 9], Granularity.HEAD)
    world.step({one: [1, 2, 3, 4, 5], two: [7, 8, 9]})
    world.step({two: [1, 2]})
    world.keep(two, {(0, 0): [1]})
    gone = world.admit([6, 6, 6], Granularity.SEQUENCE)
    world.step({gone: [6, 6, 6]})
    world.release(gone)
    world.pool.give_back(1)
    world.shrink(2)
    world.check()
    return world


def entry_of(world: World, num_children: int):
    return next(e for e in world.prefix.entries() if e.num_children == num_children and e.parent.parent is None)


def mask_of(masks: dict[int, int], value: int) -> None:
    masks[next(iter(masks))] = value


DAMAGE: dict[str, tuple[Callable[[World], object], str]] = {
    "lost reference": (lambda w: w.pool.refs.__setitem__(w.manager.table(1).pages()[0], 9), "but the pool counts 9"),
    "owner of a free page": (lambda w: w.pool.refs.__setitem__(w.pool._next * 4 + 1, 1), r"1 owners and is free"),
    "page neither used nor free": (lambda w: w.pool.refs.__setitem__(w.manager.table(1).pages()[0], 0), "not free"),
    "block in two states": (lambda w: w.pool._touched.append(w.pool._next), "in two states"),
    "block that does not exist": (lambda w: w.pool._given_back.append(99), "does not exist"),
    "split block that is free": (lambda w: w.pool._split_blocks.update({w.pool._next: 1}), "in two states"),
    "split block without free groups": (lambda w: w.pool._split_blocks.update({0: 0}), "none or all"),
    "split group without free pages": (lambda w: mask_of(w.pool._split_groups, 0), "none or all"),
    "page free twice": (lambda w: w.pool._split_groups.update({w.pool._next * 2: 1}), "free twice"),
    "wrong counter": (lambda w: setattr(w.pool, "_num_loose_pages", 77), "free pages, but the pool counts"),
    "slots without pages": (lambda w: w.manager.table(1).lens.__setitem__(0, 50), "50 slots in 3 pages"),
    "wrong room": (lambda w: setattr(w.manager.table(1), "room", 5), "has room for 1 slots, but counts 5"),
    "ids past the end": (lambda w: w.manager.table(1).bases.__setitem__((0, 3), 8), "ids beyond"),
    "shorter than its text": (lambda w: setattr(w.manager.table(1), "num_tokens", 6), "5] slots, 6 tokens"),
    "longer than its text": (lambda w: setattr(w.manager.table(2), "num_tokens", 1), "more slots than its 1 tokens"),
    "run within a run": (
        lambda w: w.manager.table(1).bases.__setitem__((0, 0), w.manager.table(1).bases[0, 0] + 1), "start within"),
    "page twice in a table": (
        lambda w: w.manager.table(1).bases.__setitem__((0, 0), w.manager.table(1).bases[0, 1]), "a page is twice"),
    "entry that is not found": (lambda w: setattr(entry_of(w, 1), "tokens", b"12345678"), "not found by its content"),
    "entry with wrong users": (lambda w: setattr(entry_of(w, 1), "users", 5), "has 1 users, but counts 5"),
    "entry with wrong children": (lambda w: setattr(entry_of(w, 1), "num_children", 3), "1 children, but counts 3"),
    "leaf not in line": (lambda w: w.prefix._heap.clear(), "is not in line"),
    "wrong number of idle entries": (lambda w: setattr(w.prefix, "_num_used", 0), "idle entries, but the cache counts"),
    "entry without its parent": (
        lambda w: w.prefix._entries.pop(entry_of(w, 1).key), r"cannot be reached|in use, but gone"),
    "root among entries": (
        lambda w: w.prefix._entries.update({b"r": next(iter(w.prefix._roots.values()))}), "is among the entries"),
    "held entry that is gone": (
        lambda w: [w.prefix._entries.pop(e.key) for e in w.prefix.entries() if not e.num_children], "in use, but gone"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(kind: str) -> None:
    damage, message = DAMAGE[kind]
    world = busy_world()
    damage(world)
    with pytest.raises(AssertionError, match=message) as caught:
        audit(world.manager)
    assert re.search(r"\d|root", str(caught.value)), "the culprit has a number"


def test_a_balanced_world_passes() -> None:
    world = busy_world()
    audit(world.manager)
    assert isinstance(world.pool.refs, np.ndarray)
