"""Rates come from the window in which every sequence decodes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from benchmarks.peers import measure
from benchmarks.peers.settings import SETTINGS, Setting
from benchmarks.peers.store import Repetition
from benchmarks.peers.trace import Trace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets: ``clock[0] = 1.5``."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.peers.trace.time.perf_counter", lambda: now[0])
    return now


def test_the_window_excludes_prefill_and_the_tail(clock: list[float]) -> None:
    trace = Trace(2, 4)
    for at, counts in [(1, [1, 0]), (2, [2, 1]), (2.5, [3, 2]), (3, [4, 3]), (9, [4, 4])]:
        clock[0] = at
        trace.mark(counts)
    assert trace.summary() == {"first_s": 2.0, "decode_s": 1.0, "decode_tokens": 4, "steps_s": [0.5, 0.5]}


def test_one_new_token_has_no_decode(clock: list[float]) -> None:
    trace = Trace(1, 1)
    clock[0] = 2.0
    trace.mark([1])
    result = trace.summary()
    assert result == {"first_s": 2.0, "decode_s": 0.0, "decode_tokens": 0, "steps_s": []}
    assert measure.rates(SETTINGS["p1024"], result) == {"prefill": 512.0}


def test_an_engine_that_stops_early_is_caught() -> None:
    trace = Trace(2, 3)
    trace.mark([3, 2])
    with pytest.raises(ValueError, match=r"asked for 3 tokens each and got \[3, 2\]"):
        trace.summary()
    with pytest.raises(ValueError, match=r"got \[\]"):
        Trace(1, 1).summary()


def test_rates_by_metric() -> None:
    setting = Setting("x", 2, 100, 11, ("prefill", "decode"))
    result = {"first_s": 4.0, "decode_s": 2.0, "decode_tokens": 20, "steps_s": []}
    assert measure.rates(setting, result) == {"prefill": 50.0, "decode": 10.0}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_a_warm_up_is_never_more_than_the_setting(setting: Setting) -> None:
    short = measure.shortened(setting)
    assert short.prompt <= measure.WARM_PROMPT
    assert short.kv_tokens <= setting.kv_tokens
    assert (short.batch, bool(short.shared)) == (setting.batch, bool(setting.shared))


def test_prompts_are_the_same_for_all_engines_and_never_seen_twice() -> None:
    b1 = SETTINGS["b1"]
    seeds = [measure.seed_of(b1, number, number) for number in range(5)]
    assert len(set(seeds)) == 5
    assert measure.seed_of(b1, 1, 1) == measure.seed_of(b1, 1, 0)  # an engine that joins late gets the round's prompts
    assert measure.seed_of(b1, 1, 2) not in seeds  # the same round again


def test_a_trace_may_count_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting takes none of it."""
    monkeypatch.setenv("PAGODA_PEERS_CLOCK", "cpu")
    trace = Trace(1, 1)
    time.sleep(0.2)
    trace.mark([1])
    assert trace.summary()["first_s"] < 0.15


def test_processor_time_needs_no_machine_of_its_own() -> None:
    crowded = Repetition("shape", "bf16", "b1", "pagoda", 0, "now", foreign_cores=1.5)
    assert not crowded.clean
    assert replace(crowded, clock="cpu").clean
    assert not replace(crowded, clock="cpu", failure="gone").clean
