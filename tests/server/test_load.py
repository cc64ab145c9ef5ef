"""The load generator against our own server: what it counts is what the server did."""

from __future__ import annotations

import asyncio
from typing import Any

from pagoda.bench.latency import Promise, summarize
from pagoda.bench.load import Target, closed_loop
from pagoda.bench.traces import draw
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.queue import WaitingQueue

from .conftest import Running


def test_a_tiny_load_on_lantern(server: Running) -> None:
    arrivals = draw("poisson", 6, 50.0, seed=1, prompt=40, output=5, shared=1)
    records = asyncio.run(closed_loop(Target(server.url, vocab_size=200, seconds=60.0), arrivals, 2))
    assert [r.error for r in records] == [""] * 6
    assert sorted(r.num_output for r in records) == sorted(a.num_output for a in arrivals)
    s = summarize(records, Promise(60.0, 60.0))
    assert s.good_share == 1.0
    assert s.cached_share > 0  # all prompts begin alike, and the traces say so in token ids
    assert s.ttft["max"] <= s.e2e["max"]


def test_a_priority_is_taken_where_the_scheduling_policy_reads_it(server: Running, monkeypatch: Any) -> None:
    body = {"prompt": "Once", "max_tokens": 1, "priority": 2}
    assert server.post("/v1/completions", body).status_code == 400
    scheduler = server.service.llm._built.engine.scheduler
    monkeypatch.setattr(scheduler, "policy", parse_scheduling("classes"))
    monkeypatch.setattr(scheduler, "waiting", WaitingQueue(scheduler.policy))
    assert server.post("/v1/completions", body).status_code == 200
