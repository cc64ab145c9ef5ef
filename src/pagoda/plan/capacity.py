"""Capacity questions, answered by simulation: the fleet that keeps a promise, and how to divide machines between
prompts and answers.

``plan.fleet`` says what would do if requests came evenly. They come in bursts and queue, so the fleet is tried on the
very traffic, and bought larger step by step until enough requests get what they were promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.errors import BudgetError, ConfigError, choices
from ..schedule.scheduler import Limits
from .catalogue import MachineType
from .fleet import BucketKey, Fleet, Kind, Slo, bucket_key, buckets_of, cheapest
from .simulator.cluster import Simulated, fewest_open, simulate
from .simulator.replica import Replica, Setting
from .simulator.sequence import Job, Served
from .simulator.split import PairSteps, simulate_split
from .targets import rented

FIRST_HEADROOM, MORE, MOST_HEADROOM = 0.6, 1.1, 30.0
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kind of machine, as the integer program and as the simulator see it."""

    kind: Kind
    setting: Setting


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a way of serving the traffic came to. ``attained``: the share of requests that got what was promised."""

    name: str
    machines: Mapping[str, int]
    dollars_per_hour: float
    attained: float
    ttft: dict[str, float]
    tpot: dict[str, float]
    goodput_per_second: float
    busy_share: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data; seconds."""
        return asdict(self)


def candidates(
    model: str, known: Mapping[str, MachineType], names: Sequence[str], limits: Limits, scheduling: str, *,
    page_size: int = 16, use_prefix: bool = False, strict: bool = False,
) -> tuple[dict[str, Candidate], dict[str, str]]:  # fmt: skip
    """The machines of these names with the model on them; and those that cannot hold it, with the reason.

    Raises ConfigError for a name that is not known, and for one that cannot hold the model where ``strict``.
    """
    found, left_out = dict[str, Candidate](), dict[str, str]()
    for name in names:
        if name not in known:
            raise ConfigError(choices("machine", name, known))
        try:
            setting = rented(model, known[name], limits, page_size=page_size).setting
        except ConfigError as error:
            if strict:
                raise
            left_out[name] = str(error)
            continue
        setting = replace(setting, scheduling=scheduling, use_prefix=use_prefix)
        capacity = setting.num_blocks * setting.fmt.page_size
        kind = Kind(name, setting.cost, capacity, limits, known[name].dollars_per_hour)
        found[name] = Candidate(kind, setting)
    if not found:
        raise ConfigError(f"no machine can hold {model}: {'; '.join(left_out.values())}")
    return found, left_out


def keeps(record: Served, slo: Slo) -> bool:
    """Whether the request got what was promised."""
    return not record.error and record.token_at[0] - record.at <= slo.ttft and _tpot(record) <= slo.tpot


def outcome(name: str, machines: Mapping[str, int], dollars: float, done: Simulated, slo: Slo) -> Outcome:
    """Of a simulation."""
    answered = [r for r in done.served if not r.error]
    good = sum(keeps(r, slo) for r in answered)
    return Outcome(
        name, dict(machines), dollars, good / max(1, len(done.served)),
        _spread([r.token_at[0] - r.at for r in answered]), _spread([_tpot(r) for r in answered if len(r.token_at) > 1]),
        good / done.seconds if done.seconds else 0.0, done.busy_share,
    )  # fmt: skip


def _tpot(record: Served) -> float:
    gaps = len(record.token_at) - 1
    return (record.token_at[-1] - record.token_at[0]) / gaps if gaps else 0.0


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {"mean": sum(ordered) / len(ordered)} | {k: ordered[int(q * (len(ordered) - 1))] for k, q in at.items()}


class Router:
    """Buckets to kinds by the fleet's shares, then to the machine of that kind with the fewest open requests."""

    def __init__(self, fleet: Fleet, names: Sequence[str]) -> None:
        self._fleet, self._names = fleet, names
        self._owed: dict[BucketKey, dict[str, float]] = {}

    def __call__(self, job: Job, machines: Sequence[Replica]) -> Replica:
        name = self._kind(bucket_key(len(job.prompt), job.num_output))
        return fewest_open(job, [m for m, kind in zip(machines, self._names, strict=True) if kind == name])

    def _kind(self, key: BucketKey) -> str:
        shares = self._fleet.shares[key]
        owed = self._owed.setdefault(key, dict.fromkeys(shares, 0.0))
        for name, share in shares.items():
            owed[name] += share
        name = max(owed, key=owed.__getitem__)
        owed[name] -= 1.0
        return name


def find_fleet(
    name: str, candidates: Mapping[str, Candidate], jobs: Sequence[Job], slo: Slo, progress: Progress | None = None
) -> Outcome:
    """The cheapest fleet of these kinds that was seen to keep the promise. Raises BudgetError where none can."""
    seconds = max(jobs[-1].at - jobs[0].at, slo.ttft)  # those that come at once may be answered within the promise
    buckets = buckets_of(((len(j.prompt), j.num_output) for j in jobs), seconds)
    kinds, headroom, tried = [c.kind for c in candidates.values()], FIRST_HEADROOM, dict[str, int]()
    while headroom < MOST_HEADROOM:
        fleet = cheapest(kinds, buckets, slo, headroom=headroom)
        headroom *= MORE
        if fleet.machines == tried:
            continue
        tried = dict(fleet.machines)
        done = _try(fleet, candidates, jobs, progress and (lambda n, m=tried: progress(f"{name}: {_text(m)}", n)))
        found = outcome(name, fleet.machines, fleet.dollars_per_hour, done, slo)
        if found.attained >= slo.attainment:
            return found
    raise BudgetError(
        f"{_text(tried)} still keep the promise for fewer than {slo.attainment:.0%} of the requests: single ones take "
        "longer than that however many machines there are; promise less"
    )


def fleets(
    candidates: Mapping[str, Candidate], jobs: Sequence[Job], slo: Slo, progress: Progress | None = None
) -> list[Outcome]:
    """The cheapest mixture, and the fleet of each kind alone that can keep the promise; the cheapest first."""
    found, refused = list[Outcome](), list[BudgetError]()
    wanted = [(name, {name: one}) for name, one in candidates.items()]
    for name, some in [*wanted, *([("mixed", candidates)] if len(candidates) > 1 else [])]:
        try:
            one = find_fleet(name, some, jobs, slo, progress)
        except BudgetError as error:
            refused.append(error)
            continue
        if not any(other.machines == one.machines for other in found):
            found.append(one)
    if not found:
        raise refused[-1]
    return sorted(found, key=lambda one: (one.dollars_per_hour, -one.attained))


def needed(
    name: str, candidates: Mapping[str, Candidate], jobs: Sequence[Job], slo: Slo, progress: Progress | None = None
) -> int:
    """How many machines of one kind keep the promise alone."""
    return find_fleet(name, {name: candidates[name]}, jobs, slo, progress).machines[name]


def _try(
    fleet: Fleet, candidates: Mapping[str, Candidate], jobs: Sequence[Job], progress: Callable[[int], None] | None
) -> Simulated:
    names = [name for name, num in fleet.machines.items() for _ in range(num)]
    settings = [candidates[name].setting for name in names]
    return simulate(jobs, settings, route=Router(fleet, names), progress=progress)


def _text(machines: Mapping[str, int]) -> str:
    return " + ".join(f"{num} {name}" for name, num in machines.items())


def divisions(
    machine: MachineType, candidate: Candidate, num: int, jobs: Sequence[Job], slo: Slo,
    progress: Progress | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """``num`` machines of one kind: all alike, every split into prompts and answers, and in pairs."""
    setting, dollars = candidate.setting, num * machine.dollars_per_hour
    move = setting.fmt.bytes_per_token / (machine.link_gigabytes_per_second * 1e9)

    def told(name: str) -> Callable[[int], None] | None:
        return progress and (lambda number: progress(name, number))

    def made(name: str, done: Simulated) -> Outcome:
        return outcome(name, {machine.name: num}, dollars, done, slo)

    yield made("alike", simulate(jobs, setting, replicas=num, progress=told("alike")))
    for prompts in range(1, num):
        name = f"{prompts} for prompts, {num - prompts} for answers"
        done = simulate_split(jobs, setting, setting, prompts, num - prompts, transfer=move, progress=told(name))
        yield made(name, done)
    if num % 2 == 0:
        pair = replace(setting, cost=PairSteps(setting.cost, move))
        yield made("in pairs", simulate(jobs, pair, replicas=num // 2, progress=told("in pairs")))
