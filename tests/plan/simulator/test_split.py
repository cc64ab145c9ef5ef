"""Prompts and answers on different machines: times by hand, nothing lost, and pairs that share their steps."""

from __future__ import annotations

import pytest

from pagoda.core.errors import ConfigError
from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.replica import Setting
from pagoda.plan.simulator.sequence import Job
from pagoda.plan.simulator.split import PairSteps, simulate_split
from pagoda.schedule.scheduler import Limits

from .fakes import FMT, Linear

SETTING = Setting(FMT, 100, Linear(), "fcfs", Limits(64, 8), use_prefix=False)


def test_one_request_takes_prompt_transfer_and_answer() -> None:
    done = simulate_split([Job(1.0, range(50), 3)], SETTING, SETTING, 1, 1, transfer=0.002)
    (record,) = done.served
    first = 1.0 + 0.06
    there = first + 50 * 0.002
    assert list(record.token_at) == pytest.approx([first, there + 0.011, there + 0.022])


def test_the_link_is_used_by_one_prompt_after_another() -> None:
    done = simulate_split([Job(0.0, range(20), 2), Job(0.0, range(20), 2)], SETTING, SETTING, 1, 1, transfer=0.01)
    first, second = (r.token_at for r in done.served)
    assert first[0] == second[0] == pytest.approx(0.05)
    assert first[1] == pytest.approx(0.05 + 0.2 + 0.011)
    assert second[1] == pytest.approx(0.05 + 0.4 + 0.011)


def test_every_request_is_answered_under_pressure() -> None:
    """KV of the answer machine is short: sequences are preempted and computed again there."""
    jobs = [Job(0.02 * i, range(i * 100, i * 100 + 40 + i % 30), 1 + i % 40) for i in range(60)]
    tight = Setting(SETTING.fmt, 20, Linear(), "fcfs", Limits(64, 8), use_prefix=False)
    done = simulate_split(jobs, SETTING, tight, 2, 1, transfer=1e-4)
    assert [len(r.token_at) for r in done.served] == [job.num_output for job in jobs]
    assert all(list(r.token_at) == sorted(r.token_at) for r in done.served)
    assert sum(r.num_preemptions for r in done.served) > 0


def test_what_can_never_fit_and_empty_sides_are_refused() -> None:
    done = simulate_split([Job(0.0, range(4000), 1)], SETTING, SETTING, 1, 1)
    assert "4001 tokens, and the KV holds 1600" in done.served[0].error
    with pytest.raises(ConfigError, match="0 machines for prompts and 1"):
        simulate_split([], SETTING, SETTING, 0, 1)


def test_a_pair_runs_prompts_beside_decodes_and_halves_what_is_alike() -> None:
    pair = PairSteps(Linear(), mirror=0.0001)
    assert pair.step_seconds(8, 800, 0, 0.0, 8) == pytest.approx(0.01 + 0.004)
    assert pair.step_seconds(0, 0, 40, 800.0, 1) == pytest.approx(0.01 + 0.02)
    assert pair.step_seconds(8, 800, 40, 800.0, 9) == pytest.approx(0.01 + 0.04)
    assert PairSteps(Linear(), mirror=0.01).step_seconds(8, 800, 40, 800.0, 9) == pytest.approx(0.4)


def test_separate_machines_keep_answers_smooth_where_prompts_would_stall_them() -> None:
    jobs = [Job(0.25 * i, range(i * 1000, i * 1000 + 300), 20) for i in range(40)]
    wide = Setting(SETTING.fmt, 400, Linear(), "prefill_first", Limits(512, 8), use_prefix=False)
    gaps = []
    for done in (simulate(jobs, wide, replicas=2), simulate_split(jobs, wide, wide, 1, 1)):
        gaps.append(max(b - a for r in done.served for a, b in zip(r.token_at[1:], r.token_at[2:], strict=False)))
    assert gaps[1] < gaps[0] / 3
