"""How many machines of which kind serve a load for the least money (Mélange, https://arxiv.org/abs/2404.14527).

Requests fall into buckets by the lengths of prompt and answer, since the cheapest kind of machine differs by size. From
the cost model comes the most requests of a bucket that one machine of a kind can take in a second while the promise is
kept; an integer program then chooses whole machines and which share of each bucket goes to which kind:

    minimize    sum over kinds (dollars x machines)
    such that   all of every bucket is served, and no kind gets more than its machines' time

Deviation: the paper cuts buckets into slices that go to one kind each; here shares are continuous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import BudgetError, ConfigError
from ..schedule.scheduler import Limits
from .plans import prompt_seconds
from .work import StepModel, Work

SMALLEST = 16
"""Lengths up to here are one bucket; above, each power of two."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Most seconds to the first token and between two, which a share of ``attainment`` of all requests must get."""

    ttft: float = 2.0
    tpot: float = 0.1
    attainment: float = 0.95

    def __post_init__(self) -> None:
        if not (self.ttft > 0 and self.tpot > 0 and 0 < self.attainment <= 1):
            raise ConfigError(
                f"slo: ttft {self.ttft}, tpot {self.tpot}, attainment {self.attainment}; give seconds above 0 and a "
                "share above 0 and up to 1"
            )


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests alike: their mean lengths, and how many come in a second."""

    prompt: int
    output: int
    per_second: float


BucketKey = tuple[int, int]


def bucket_key(num_prompt: int, num_output: int) -> BucketKey:
    """Which bucket a request is in: the powers of two that its lengths do not exceed."""
    return tuple(max(SMALLEST, 1 << (n - 1).bit_length()) for n in (num_prompt, num_output))  # type: ignore[return-value]


def buckets_of(requests: Iterable[tuple[int, int]], seconds: float) -> dict[BucketKey, Bucket]:
    """``(prompt, output)`` tokens of requests that came within ``seconds``."""
    found: dict[BucketKey, list[tuple[int, int]]] = {}
    for request in requests:
        found.setdefault(bucket_key(*request), []).append(request)
    return {
        key: Bucket(
            round(sum(p for p, _ in all_) / len(all_)), round(sum(o for _, o in all_) / len(all_)), len(all_) / seconds
        )
        for key, all_ in sorted(found.items())
    }


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of machine with the model on it."""

    name: str
    steps: StepModel
    capacity_tokens: int
    limits: Limits
    dollars: float


def max_rate(kind: Kind, bucket: Bucket, slo: Slo) -> float:
    """Requests of that size a second that one machine takes for ever; 0.0 where the promise cannot be kept.

    With b sequences running, each step has b / output prompts beside it on average; the largest b that keeps ``tpot``
    gives the rate b / (output x tpot).
    """
    length = bucket.prompt + bucket.output
    most = min(kind.limits.max_num_seqs, kind.capacity_tokens // length)
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _keeps(kind, bucket, slo, middle) else (low, middle - 1)
    return low / (bucket.output * _tpot(kind, bucket, low)) if low else 0.0


def _keeps(kind: Kind, bucket: Bucket, slo: Slo, running: int) -> bool:
    ttft = _prompt(kind, bucket, running)
    return ttft <= slo.ttft and (bucket.output == 1 or _tpot(kind, bucket, running) <= slo.tpot)


def _context(bucket: Bucket) -> float:
    return bucket.prompt + bucket.output / 2


def _prompt(kind: Kind, bucket: Bucket, running: int) -> float:
    """Seconds of a prompt while the others decode."""
    return prompt_seconds(
        kind.steps, bucket.prompt, kind.limits.max_num_batched_tokens, decodes=running - 1, context=_context(bucket)
    )


def _tpot(kind: Kind, bucket: Bucket, running: int) -> float:
    decode = kind.steps.seconds(Work(decodes=running, context=_context(bucket), rows=running))
    room = max(1, kind.limits.max_num_batched_tokens - (running - 1))
    num_steps = -(-bucket.prompt // room)
    return decode + running / bucket.output * max(0.0, _prompt(kind, bucket, running) - num_steps * decode)


@dataclass(frozen=True, slots=True)
class Fleet:
    """``machines`` by kind, ``shares`` of each bucket by kind, and what an hour costs."""

    machines: Mapping[str, int]
    shares: Mapping[BucketKey, Mapping[str, float]]
    dollars_per_hour: float


def cheapest(kinds: Sequence[Kind], buckets: Mapping[BucketKey, Bucket], slo: Slo, *, headroom: float = 1.0) -> Fleet:
    """The fleet for ``headroom`` times the load. Raises BudgetError naming a bucket that no kind can serve."""
    import highspy

    from .solver import silent_solver

    rates = {key: [max_rate(kind, bucket, slo) for kind in kinds] for key, bucket in buckets.items()}
    for key, found in rates.items():
        if not any(found):
            bucket, names = buckets[key], ", ".join(kind.name for kind in kinds)
            raise BudgetError(
                f"no machine of {names} answers {bucket.prompt} tokens with {bucket.output} within {slo.ttft:g} s and "
                f"{slo.tpot:g} s a token; promise less, or give another kind"
            )
    solver = silent_solver()
    counts = [
        solver.addVariable(lb=0, obj=max(kind.dollars, 1e-6), type=highspy.HighsVarType.kInteger) for kind in kinds
    ]
    shares = {
        key: [solver.addVariable(lb=0.0, ub=1.0 if rate else 0.0) for rate in found] for key, found in rates.items()
    }
    for row in shares.values():
        solver.addConstr(sum(row) == 1.0)
    for at, count in enumerate(counts):
        loads = [
            headroom * buckets[key].per_second / rates[key][at] * row[at]
            for key, row in shares.items()
            if rates[key][at]
        ]
        if loads:
            solver.addConstr(sum(loads) <= count)
    solver.minimize()
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal, "every bucket has a kind, so a fleet exists"
    values = solver.getSolution().col_value
    machines = {kind.name: round(values[c.index]) for kind, c in zip(kinds, counts, strict=True)}
    return Fleet(
        {name: num for name, num in machines.items() if num},
        {
            key: {kind.name: values[v.index] for kind, v in zip(kinds, row, strict=True) if values[v.index] > 1e-6}
            for key, row in shares.items()
        },
        sum(kind.dollars * machines[kind.name] for kind in kinds),
    )
