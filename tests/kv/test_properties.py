"""Random lives of many sequences: the auditor and the reading back of every slot after each operation.

Two drivers over one world: hypothesis (finds and shrinks), and a plain random one (many more operations a second).
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagoda.core.types import Granularity

from .world import World, fmt_of

SCRIPTS = [[i % 3 for i in range(12)], [i % 3 for i in range(7)] + [5] * 8, [9, 8, 7, 9, 8, 7, 9, 8]]
SALTS = ["", "tenant"]
GRAINS = {
    "sequence": [Granularity.SEQUENCE],
    "layer": [Granularity.LAYER],
    "head": [Granularity.HEAD],
    "mixed": list(Granularity),
}
SHAPES = [(2, 2, 2), (1, 3, 2), (3, 1, 3), (1, 1, 2), (2, 3, 4)]  # layers, kv-heads, page size


class Actions:
    """One random operation each; ``pick(n)`` is a number below n."""

    def __init__(self, world: World, grains: list[Granularity]) -> None:
        self.world, self.grains = world, grains

    def admit(self, pick) -> None:
        script = SCRIPTS[pick(len(SCRIPTS))]
        tokens = (script if pick(2) else script[: 1 + pick(len(script))]) + [pick(2) for _ in range(pick(4))]
        world = self.world
        grain = self.grains[pick(len(self.grains))]
        seq_id = world.admit(tokens, grain, SALTS[pick(8) == 0], use_prefix=pick(8) > 0)
        cached = len(world.seqs[seq_id].tokens)
        if pick(4):  # prefill, whole or in two chunks
            rest = tokens[cached:]
            cut = pick(len(rest)) if pick(2) else 0
            for chunk in filter(None, (rest[:cut], rest[cut:])):
                world.step({seq_id: chunk})

    def step(self, pick) -> None:
        chosen = [seq_id for seq_id in self.world.seqs if pick(3)]
        self.world.step({seq_id: [pick(3) for _ in range(1 + pick(3))] for seq_id in chosen})

    def reserve(self, pick) -> None:
        self.world.reserve(self._one(pick), 1 + pick(5))

    def fork(self, pick) -> None:
        self.world.fork(self._one(pick))

    def truncate(self, pick) -> None:
        seq_id = self._one(pick)
        twin = self.world.seqs[seq_id]
        floor = self.world.floor(seq_id)
        self.world.truncate(seq_id, floor + pick(len(twin.tokens) - floor + 1))

    def keep(self, pick) -> None:
        seq_id = self._one(pick)
        table, fmt = self.world.manager.table(seq_id), self.world.fmt
        free = [layer for layer, window in enumerate(self.world.by_layer) if not window]
        if self.world.windows is not None and (not free or table.granularity is Granularity.SEQUENCE):
            return
        layers = [free[pick(len(free))]] if pick(2) else free
        heads = [pick(fmt.num_kv_heads)] if pick(2) else list(range(fmt.num_kv_heads))
        names = {
            Granularity.SEQUENCE: [(None, None)],
            Granularity.LAYER: [(layer, None) for layer in layers],
            Granularity.HEAD: [(layer, head) for layer in layers for head in heads],
        }[table.granularity]
        drop = 1 + pick(4)  # 1: nothing goes … 4: three of four go
        kept = {}
        for layer, head in names:
            held = table.length(layer or 0, head or 0)
            kept[layer, head] = [slot for slot in range(held) if pick(4) >= drop - 1]
        self.world.keep(seq_id, kept)

    def release(self, pick) -> None:
        self.world.release(self._one(pick))

    def pin(self, pick) -> None:
        self.world.pin(SCRIPTS[pick(len(SCRIPTS))], SALTS[pick(2)], [None, 5.0, 100.0][pick(3)])

    def unpin(self, pick) -> None:
        self.world.unpin(pick(len(self.world.pins)))

    def shrink(self, pick) -> None:
        self.world.shrink(1 + pick(4))

    def give_back(self, pick) -> None:
        self.world.pool.give_back(1 + pick(3))

    def grant(self, pick) -> None:
        self.world.ledger_blocks += pick(2)

    def clear(self, pick) -> None:
        self.world.manager.clear_prefix()

    def wait(self, pick) -> None:
        self.world.clock.advance(float(1 + pick(50)))

    def _one(self, pick) -> int:
        return list(self.world.seqs)[pick(len(self.world.seqs))]


NEED_SEQUENCE = ("step", "reserve", "fork", "truncate", "keep", "release")
WEIGHTS = {
    "admit": 10, "step": 12, "reserve": 3, "fork": 4, "truncate": 4, "keep": 6, "release": 8, "pin": 1, "unpin": 1,
    "shrink": 1, "give_back": 1, "grant": 2, "clear": 0.5, "wait": 1,
}  # fmt: skip


def drive(seed: int, grains: str, num_actions: int) -> int:
    """A random life of ``num_actions`` actions; returns the number of operations on the manager."""
    return live(seed, grains, num_actions).num_ops


def live(seed: int, grains: str, num_actions: int, windowed: bool = False) -> World:
    """The world after such a life."""
    rng = random.Random(f"{grains} {seed}")
    num_blocks = rng.choice([rng.randrange(1, 16), rng.randrange(16, 48)])
    shape = SHAPES[seed % len(SHAPES)]
    windows = [rng.choice([0, 1, 2, 3, 5]) for _ in range(shape[0])] if windowed else []
    world = World(fmt_of(*shape), num_blocks, max_blocks=50, windows=windows if any(windows) else ())
    actions = Actions(world, GRAINS[grains])
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    for _ in range(num_actions):
        name = rng.choices(names, weights)[0]
        if (name in NEED_SEQUENCE and not world.seqs) or (name == "unpin" and not world.pins):
            continue
        if name == "admit" and len(world.seqs) > 6:
            name = "release"
        getattr(actions, name)(rng.randrange)
        world.check()
    finish(world)
    return world


def finish(world: World) -> None:
    """Everybody leaves: every page is free again."""
    for seq_id in list(world.seqs):
        world.release(seq_id)
    for index in reversed(range(len(world.pins))):
        world.unpin(index)
    world.manager.clear_prefix()
    world.check()
    assert world.pool.num_used_pages == 0
    assert world.pool.num_free_blocks == world.pool.num_blocks


@pytest.mark.parametrize("grains", GRAINS)
def test_random_lives(grains: str) -> None:
    assert sum(drive(seed, grains, 180) for seed in range(70)) > 20_000


@pytest.mark.parametrize("grains", GRAINS)
def test_random_lives_of_layers_with_windows(grains: str) -> None:
    worlds = [live(seed, grains, 180, windowed=True) for seed in range(28)]
    assert sum(world.num_ops for world in worlds) > 6_000
    assert sum(world.prefix.stats.num_thinned_pages for world in worlds) > 40


@pytest.mark.slow
@pytest.mark.parametrize("grains", GRAINS)
def test_many_random_lives(grains: str) -> None:
    assert sum(drive(seed, grains, 500) for seed in range(1000, 1200)) > 100_000
    for seed in range(1000, 1100):
        live(seed, grains, 500, windowed=True)


class KVMachine(RuleBasedStateMachine):
    """The same actions, chosen and shrunk by hypothesis."""

    grains = "mixed"

    @initialize(shape=st.sampled_from(SHAPES), num_blocks=st.integers(1, 40))
    def begin(self, shape: tuple[int, int, int], num_blocks: int) -> None:
        self.world = World(fmt_of(*shape), num_blocks, max_blocks=45)
        self.actions = Actions(self.world, GRAINS[self.grains])

    @rule(name=st.sampled_from(["pin", "shrink", "give_back", "grant", "clear", "wait"]), seed=st.integers(0, 999))
    def anytime(self, name: str, seed: int) -> None:
        getattr(self.actions, name)(random.Random(seed).randrange)

    @precondition(lambda self: len(self.world.seqs) < 7)
    @rule(seed=st.integers(0, 999))
    def admit(self, seed: int) -> None:
        self.actions.admit(random.Random(seed).randrange)

    @precondition(lambda self: self.world.seqs)
    @rule(name=st.sampled_from(NEED_SEQUENCE), seed=st.integers(0, 999))
    def with_sequence(self, name: str, seed: int) -> None:
        getattr(self.actions, name)(random.Random(seed).randrange)

    @precondition(lambda self: self.world.pins)
    @rule(seed=st.integers(0, 99))
    def unpin(self, seed: int) -> None:
        self.actions.unpin(random.Random(seed).randrange)

    @invariant()
    def balances(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            finish(self.world)


def machine(name: str, max_examples: int, steps: int) -> type:
    case = type(f"{name.title()}Machine", (KVMachine,), {"grains": name}).TestCase
    case.settings = settings(
        max_examples=max_examples, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    return case


TestSequenceMachine = machine("sequence", 25, 40)
TestLayerMachine = machine("layer", 25, 40)
TestHeadMachine = machine("head", 25, 40)
TestMixedMachine = machine("mixed", 40, 40)
