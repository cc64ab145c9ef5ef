"""What users waited for: percentiles, goodput under a promise, fairness, and whether two runs really differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from random import Random
from statistics import fmean, mean
from typing import Any

from ..plan.simulator.sequence import Served

PERCENTILES = (50, 90, 95, 99)
NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Promise:
    """Seconds to the first token, and between two of them on average; a request that kept both is good."""

    ttft: float = 2.0
    tpot: float = 0.1

    def kept(self, record: Served) -> bool:
        return not record.error and ttft(record) <= self.ttft and tpot(record) <= self.tpot


def ttft(record: Served) -> float:
    """Seconds from arrival to the first token."""
    return record.token_at[0] - record.at


def tpot(record: Served) -> float:
    """Seconds per token after the first; 0.0 for answers of one token."""
    gaps = len(record.token_at) - 1
    return (record.token_at[-1] - record.token_at[0]) / gaps if gaps else 0.0


def e2e(record: Served) -> float:
    """Seconds from arrival to the last token."""
    return record.token_at[-1] - record.at


@dataclass(frozen=True, slots=True)
class Summary:
    """Seconds, tokens and requests of one run. ``itl``: single gaps between tokens; percentiles by name (``p99``).

    jain       Jain's index of output tokens over tenants, each over its demand: 1.0 is fair, 1/n one has it all
    max_min    the least over the most served share of a tenant
    """

    num_requests: int
    num_failed: int
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    goodput_per_second: float
    good_share: float
    num_preemptions: int
    cached_share: float
    ttft: dict[str, float]
    tpot: dict[str, float]
    itl: dict[str, float]
    e2e: dict[str, float]
    jain: float
    max_min: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(records: Sequence[Served], promise: Promise, *, warmup: float = 0.0) -> Summary:
    """All of a run, or what arrived after the first ``warmup`` seconds of it. Failed requests are never good."""
    records = [r for r in records if r.at >= warmup]
    done = [r for r in records if not r.error and r.token_at]
    if not done:
        raise ValueError(f"none of {len(records)} requests was answered")
    seconds = max(r.token_at[-1] for r in done) - min(r.at for r in records)
    num_good = sum(promise.kept(r) for r in done)
    shares = _shares(done, max(r.at for r in records))
    gaps = [after - before for r in done for before, after in pairwise(r.token_at)]
    return Summary(
        num_requests=len(records),
        num_failed=len(records) - len(done),
        seconds=seconds,
        requests_per_second=len(done) / seconds,
        output_tokens_per_second=sum(len(r.token_at) for r in done) / seconds,
        goodput_per_second=num_good / seconds,
        good_share=num_good / len(records),
        num_preemptions=sum(r.num_preemptions for r in done),
        cached_share=sum(r.num_cached for r in done) / sum(r.num_prompt for r in done),
        ttft=percentiles([ttft(r) for r in done]),
        tpot=percentiles([tpot(r) for r in done if len(r.token_at) > 1]),
        itl=percentiles(gaps),
        e2e=percentiles([e2e(r) for r in done]),
        jain=sum(shares) ** 2 / (len(shares) * sum(s * s for s in shares)) if any(shares) else 1.0,
        max_min=min(shares) / max(shares) if any(shares) else 1.0,
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``mean``, ``p50`` to ``p99`` (the smallest value that as many are not above) and ``max``; empty for no values."""
    if not values:
        return {}
    ordered, last = sorted(values), len(values) - 1
    found = {f"p{p}": ordered[min(last, -(-len(ordered) * p // 100) - 1)] for p in PERCENTILES}
    return {"mean": mean(ordered), **found, "max": ordered[-1]}


def _shares(done: Sequence[Served], last: float) -> list[float]:
    """Of what each tenant asked for, the share that was generated while requests still arrived: after that the queue
    empties, and everybody has got everything.
    """
    asked: dict[str, int] = {}
    got: dict[str, int] = {}
    for r in done:
        asked[r.tenant] = asked.get(r.tenant, 0) + len(r.token_at)
        got[r.tenant] = got.get(r.tenant, 0) + sum(at <= last for at in r.token_at)
    return [got[tenant] / asked[tenant] for tenant in sorted(asked)]


@dataclass(frozen=True, slots=True)
class Difference:
    """``b`` minus ``a`` of a statistic, with the interval that holds 95 % of the resampled differences."""

    measure: str
    a: float
    b: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_clear": self.is_clear}


def compare(a: Sequence[Served], b: Sequence[Served], *, seed: int = 0) -> list[Difference]:
    """TTFT, TPOT and end-to-end seconds of two runs, their means and 99th percentiles (``ttft_p99``): bootstrap over
    requests (Efron 1979), 1000 resamples.

    Requests of one run influence each other, so the interval is one of which requests came, not of other days.
    """
    measures: dict[str, Callable[[Served], float]] = {"ttft": ttft, "tpot": tpot, "e2e": e2e}
    found = []
    for suffix, statistic in (("", fmean), ("_p99", _p99)):
        for name, measure in measures.items():
            random = Random(seed)
            x, y = [measure(r) for r in a if r.token_at], [measure(r) for r in b if r.token_at]
            drawn = sorted(
                statistic(random.choices(y, k=len(y))) - statistic(random.choices(x, k=len(x)))
                for _ in range(NUM_RESAMPLES)
            )
            edge = NUM_RESAMPLES // 40
            found.append(Difference(name + suffix, statistic(x), statistic(y), drawn[edge], drawn[-edge - 1]))
    return found


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, -(-len(values) * 99 // 100) - 1)]
