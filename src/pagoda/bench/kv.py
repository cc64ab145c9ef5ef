"""The price list of KV policies: every method at every budget, on the same cases, in one engine.

For each: KV bytes held while answering, at the peak and read in a step (as shares of exact), quality by task, and the
speed of prefill and decode beside exact, measured in turns.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..sampling.params import SamplingParams
from .forced import Answer, Case, ForcedEngine
from .quality.tasks import TASKS
from .quality.tasks.base import Task, World
from .quality.tasks.recall import heat
from .turns import Steps, in_turns

HELPLESS = 0.2
"""A task in which the exact model itself scores less says nothing about a method."""


@dataclass
class Price:
    """One method at one budget. Shares are of the bytes that exact holds on the same cases; ``quality`` by metric.
    ``noted``: what the policy remembers beside the KV; ``read``: what a step of the answer attends to; ``looked``: what
    of the notes a selection looks at in a step to choose that. None: not measured. ``noisy``: speeds that would be
    others if one round had been left out.
    """

    kv: str
    method: str
    budget: int | float | None
    held_share: float | None = None
    noted_share: float | None = None
    peak_share: float | None = None
    read_share: float | None = None
    looked_share: float | None = None
    quality: dict[str, float] = field(default_factory=dict)
    prefill_speed: float | None = None
    decode_speed: float | None = None
    policy_share: float | None = None
    noisy: list[str] = field(default_factory=list)
    heat: dict[str, float] = field(default_factory=dict)

    @property
    def all_read_share(self) -> float:
        """What a step reads of KV and marks together."""
        return (self.read_share or 0.0) + (self.looked_share or 0.0)


@dataclass
class PriceList:
    """All prices of one model; the first is exact. ``count`` cases a task; ``fewer``: metric -> cases, where the texts
    had no more different ones. ``left_out``: metric -> why it is not judged; ``not_priced``: method -> why it is not in
    the list; ``speeds_of``: the day and the machine that speeds were measured on.
    """

    model: str
    length: int
    count: int
    prices: list[Price]
    higher_is_better: dict[str, bool]
    left_out: dict[str, str] = field(default_factory=dict)
    not_priced: dict[str, str] = field(default_factory=dict)
    speeds_of: str = ""
    fewer: dict[str, int] = field(default_factory=dict)

    def cases_of(self, metric: str) -> int:
        """How many different cases a metric is the mean of."""
        return self.fewer.get(metric, self.count)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def price(
    engine: ForcedEngine,
    world: World,
    chosen: Sequence[tuple[str, str, int | float | None]],
    tasks: Sequence[str],
    count: int,
    *,
    model: str,
    with_speed: bool = True,
    progress: Callable[[str], None] = lambda _: None,
    accept: Callable[[Price], None] = lambda _: None,
) -> PriceList:
    """Runs everything; ``progress`` is told each (method, budget) when it is done, ``accept`` exact's price before any
    method is run, and may raise. Raises ConfigError for a task that the world cannot hold, and for policies that the
    model cannot run.
    """
    made = [(name, _task(name)) for name in tasks]
    cases = {name: task.cases(world, count) for name, task in made}
    exact = _answered(engine, cases, "exact")
    better = {metric: up for _, task in made for metric, up in task.metrics.items()}
    found = PriceList(model, world.length, count, [], better)
    for name, task in made:
        if (num := len({(case.prompt_ids, case.forced_ids) for case in cases[name]})) < count:
            found.fewer |= dict.fromkeys(task.metrics, num)
    rival = list(engine.run(_any_cases(engine, world, "exact"), "exact")) if with_speed else []
    for kv, method, budget in [("exact", "exact", None), *chosen]:
        one, before = Price(kv, method, budget), engine.pages
        answers = exact if kv == "exact" else _answered(engine, cases, kv)
        if made:
            _judge(one, made, answers, exact)
            one.read_share = one.held_share * _part_read(before, engine.pages)  # type: ignore[operator]
        if kv == "exact":
            accept(one)
        if with_speed:
            mine = list(engine.run(_any_cases(engine, world, kv), kv))  # warms up, too
            if not made:
                _note(one, mine, rival)
            _race(one, engine, world)
        found.prices.append(one)
        progress(kv)
    for metric, value in found.prices[0].quality.items():
        if better[metric] and value < HELPLESS:
            found.left_out[metric] = f"exact itself scores {value:.2f}"
    return found


def _answered(engine: ForcedEngine, cases: dict[str, list[Case]], kv: str) -> dict[str, list[Answer]]:
    """By task. Tasks that ask the same of the same passages get the same answers."""
    found: dict[str, list[Answer]] = {}
    for name, mine in cases.items():
        same = next((other for other in found if cases[other] == mine), None)
        found[name] = list(engine.run(mine, kv)) if same is None else found[same]
    return found


def _task(name: str) -> Task:
    task: Any = TASKS.get(name)
    made: Task = task()
    return made


def _judge(
    one: Price, tasks: Sequence[tuple[str, Task]], answers: dict[str, list[Answer]], exact: dict[str, list[Answer]]
) -> None:
    mine = [answer for name, _ in tasks for answer in answers[name]]
    theirs = [answer for name, _ in tasks for answer in exact[name]]
    whole = sum(a.held_bytes for a in theirs)
    one.held_share = sum(a.held_bytes for a in mine) / whole
    _note(one, mine, theirs)
    one.peak_share = sum(a.peak_bytes for a in mine) / sum(a.peak_bytes for a in theirs)
    for name, task in tasks:
        one.quality |= task.score(answers[name], exact[name])
    if "recall" in answers:
        one.heat = {f"{distance}/{depth}": share for (distance, depth), share in heat(answers["recall"]).items()}


def _note(one: Price, mine: Sequence[Answer], theirs: Sequence[Answer]) -> None:
    whole = sum(a.held_bytes for a in theirs)
    one.noted_share = sum(a.noted_bytes for a in mine) / whole
    one.looked_share = sum(a.looked_bytes for a in mine) / whole


def _part_read(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Of the pages that selections had before them; a method that selects nothing reads everything."""
    read, held = (new - old for old, new in zip(before, after, strict=True))
    return read / held if held else 1.0


WIDTH, ANSWER = 8, 33
"""Sequences whose speed is measured, and tokens of their answers: as many steps as some acts are apart, and one."""


def _any_prompts(engine: ForcedEngine, world: World, what: str) -> list[list[int]]:
    """Random tokens, other ones for another ``what``: no prefix cache knows them."""
    rng, vocab = random.Random(what), engine.built.loaded.shape.vocab_size
    return [[rng.randrange(vocab) for _ in range(world.length - ANSWER)] for _ in range(WIDTH)]


def _any_cases(engine: ForcedEngine, world: World, what: str) -> list[Case]:
    """The same with answers that are given, of which nothing is scored."""
    return [Case(tuple(ids), tuple(ids[: ANSWER - 1]), ()) for ids in _any_prompts(engine, world, what)]


def _race(one: Price, engine: ForcedEngine, world: World) -> None:
    """Prefill and decode of a batch, the method and exact in turns."""
    counters, numbers, shares = engine.engine.counters, itertools.count(), list[float]()

    def run(kv: str) -> Steps:
        prompts, before = _any_prompts(engine, world, f"{one.kv} {next(numbers)}"), counters.policy_seconds
        prefill, decode = engine.timed(
            prompts, SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, kv=kv)
        )
        if kv == one.kv:
            shares.append((counters.policy_seconds - before) / sum([*prefill, *decode]))
        return {"prefill": prefill, "decode": decode}

    found = in_turns(partial(run, "exact"), partial(run, one.kv))
    one.prefill_speed, one.decode_speed = found["prefill"].value, found["decode"].value
    one.noisy = [part for part, ratio in found.items() if ratio.noisy]
    one.policy_share = statistics.median(shares)
