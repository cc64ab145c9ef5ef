"""The cheapest fleet: against brute force, by size of request, and refused by name where a promise is too much."""

from __future__ import annotations

from itertools import product

import pytest

from pagoda.core.errors import BudgetError, ConfigError
from pagoda.plan.fleet import Bucket, Kind, Slo, bucket_key, buckets_of, cheapest, max_rate
from pagoda.plan.work import StepModel, Work
from pagoda.schedule.scheduler import Limits


class Steps(StepModel):
    """``base`` seconds a step, ``token`` a token, ``slot`` a slot."""

    def __init__(self, base: float, token: float, slot: float = 0.0) -> None:
        self.base, self.token, self.slot = base, token, slot

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        return self.base + self.token * (decodes + chunk) + self.slot * slots


SMALL = Kind("small", Steps(0.03, 4e-4, 2e-6), 20_000, Limits(512, 64), 1.0)
BIG = Kind("big", Steps(0.01, 1e-4, 2e-7), 100_000, Limits(512, 64), 5.0)
SLO = Slo(ttft=2.0, tpot=0.1)


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_key(*pair) for pair in ((1, 1), (16, 17), (100, 128), (129, 1000))] == [
        (16, 16), (16, 32), (128, 128), (256, 1024),
    ]  # fmt: skip
    found = buckets_of([(100, 10), (110, 12), (500, 10)], 2.0)
    assert found == {(128, 16): Bucket(105, 11, 1.0), (512, 16): Bucket(500, 10, 0.5)}


def test_the_most_requests_a_second_keep_the_promise_and_no_more() -> None:
    bucket = Bucket(200, 50, 1.0)
    rate = max_rate(BIG, bucket, SLO)
    decode = 0.01 + 64e-4 + 2e-7 * 64 * 225
    beside = 0.01 + 1e-4 * (63 + 200) + 2e-7 * 63 * 225
    assert rate == pytest.approx(64 / (50 * (decode + 64 / 50 * (beside - decode))))  # all seats are taken
    tighter = max_rate(BIG, bucket, Slo(ttft=2.0, tpot=0.02))
    assert 0 < tighter < rate
    assert max_rate(BIG, bucket, Slo(ttft=2.0, tpot=0.0101)) == 0.0  # a step alone takes longer
    assert max_rate(SMALL, Bucket(30_000, 10, 1.0), SLO) == 0.0  # does not fit


def test_answers_of_one_token_are_prompts_only() -> None:
    steps = BIG.steps.seconds(Work(chunk=400, rows=1))
    assert max_rate(BIG, Bucket(400, 1, 1.0), SLO) == pytest.approx(1 / steps, rel=0.35)


def test_the_program_finds_what_trying_all_finds() -> None:
    buckets = {(256, 64): Bucket(200, 50, 30.0), (4096, 128): Bucket(3000, 100, 4.0)}
    fleet = cheapest([SMALL, BIG], buckets, SLO)
    rates = {key: [max_rate(kind, bucket, SLO) for kind in (SMALL, BIG)] for key, bucket in buckets.items()}
    shares = [i / 60 for i in range(61)]

    def enough(num_small: int, num_big: int) -> bool:
        for a, b in product(shares, shares):
            load_small = load_big = 0.0
            for share, (key, bucket) in zip((a, b), buckets.items(), strict=True):
                if share and not rates[key][0]:
                    break
                load_small += share * bucket.per_second / rates[key][0] if share else 0.0
                load_big += (1 - share) * bucket.per_second / rates[key][1]
            else:
                if load_small <= num_small + 1e-9 and load_big <= num_big + 1e-9:
                    return True
        return False

    best = min(s + 5 * b for s, b in product(range(40), range(9)) if enough(s, b))
    assert fleet.dollars_per_hour == pytest.approx(best)
    assert all(sum(of.values()) == pytest.approx(1.0) for of in fleet.shares.values())


def test_a_promise_that_nobody_keeps_is_refused_with_the_size() -> None:
    with pytest.raises(BudgetError, match="no machine of small answers 30000 tokens with 10 within 2 s"):
        cheapest([SMALL], {(32768, 16): Bucket(30_000, 10, 1.0)}, SLO)
    with pytest.raises(ConfigError, match="attainment 1.5"):
        Slo(attainment=1.5)
