"""Percentiles, goodput, fairness and intervals, by numbers that can be checked by hand."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from pagoda.bench.latency import Promise, compare, percentiles, summarize
from pagoda.bench.load_plots import cumulative
from pagoda.plan.simulator.sequence import Served


def answered(at: float, *token_at: float, tenant: str = "", error: str = "") -> Served:
    return Served(at, 10, len(token_at), tenant, token_at=array("d", token_at), error=error)


def test_a_summary_is_what_the_clock_said() -> None:
    records = [answered(0.0, 1.0, 1.5, 2.0), answered(1.0, 4.0), answered(2.0, error="refused")]
    s = summarize(records, Promise(ttft=2.0, tpot=0.5))
    assert (s.num_requests, s.num_failed, s.seconds) == (3, 1, 4.0)
    assert s.output_tokens_per_second == 1.0
    assert s.goodput_per_second == 0.25
    assert s.good_share == pytest.approx(1 / 3)
    assert s.ttft == {"mean": 2.0, "p50": 1.0, "p90": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert s.itl["max"] == s.tpot["mean"] == 0.5
    assert s.e2e["max"] == 3.0
    assert summarize(records, Promise(ttft=0.5)).good_share == 0.0


def test_the_warm_up_is_left_out_and_nothing_is_no_result() -> None:
    records = [answered(0.0, 9.0), answered(5.0, 6.0)]
    assert summarize(records, Promise(), warmup=1.0).ttft["max"] == 1.0
    with pytest.raises(ValueError, match="none of 1 requests"):
        summarize([answered(0.0, error="x")], Promise())


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles(list(range(1, 101)))["p99"] == 99
    assert percentiles([7.0])["p50"] == 7.0
    assert percentiles([]) == {}


def test_fairness_looks_at_shares_while_requests_come() -> None:
    even = [
        answered(0.0, 1.0, 2.0, tenant="a"),
        answered(3.0, 3.0, 9.0, tenant="b"),
        answered(0.0, 1.0, 9.0, tenant="a"),
    ]
    assert summarize(even[:1] * 2, Promise()).jain == 1.0
    starved = [answered(0.0, 1.0, tenant="a"), answered(0.0, 9.0, tenant="b"), answered(3.0, 3.0, tenant="a")]
    s = summarize(starved, Promise())
    assert s.jain == 0.5
    assert s.max_min == 0.0


def test_two_runs_differ_clearly_or_not() -> None:
    random = Random(1)
    a = [answered(0.0, random.gauss(1.0, 0.1), 3.0) for _ in range(60)]
    b = [answered(0.0, random.gauss(1.2, 0.1), 3.0) for _ in range(60)]
    slower, same = compare(a, b)[0], compare(a, a)[0]
    assert slower.measure == "ttft"
    assert slower.is_clear
    assert slower.low < 0.2 < slower.high
    assert not same.is_clear
    assert compare(a, b) == compare(a, b)


def test_a_picture_has_a_line_for_each_run() -> None:
    drawn = cumulative("ttft & more", {"fcfs": [0.1, 0.2, 3.0], "<sjf>": [0.1], "none": []})
    assert drawn.count("<polyline") == 3
    assert "&lt;sjf&gt;" in drawn
    assert "ttft &amp; more" in drawn
