"""Around the load: time lines from a server's metrics, the steady part of a run, the report."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from random import Random

import pytest

from pagoda.bench.latency import Promise, compare
from pagoda.bench.load import Target
from pagoda.bench.load_report import write_report
from pagoda.bench.records import Run
from pagoda.bench.serving import parse_users, parse_warmup, summarize_run
from pagoda.bench.steady import mser, steady_state
from pagoda.bench.timeline import Sample, parse, watch
from pagoda.core.errors import ConfigError
from pagoda.plan.simulator.sequence import Served

METRICS = """# HELP vllm:num_requests_running x
vllm:num_requests_running{model_name="a"} 3.0
vllm:num_requests_running{model_name="b"} 1.0
vllm:num_requests_waiting{model_name="a"} 7.0
vllm:gpu_cache_usage_perc{model_name="a"} 0.25
vllm:num_preemptions_total{model_name="a"} %d.0
other_total 9
"""


def served(at: float, seconds: float, tokens: int = 3, tenant: str = "") -> Served:
    times = array("d", [at + seconds * (i + 1) / tokens for i in range(tokens)])
    return Served(at, 10, tokens, tenant, token_at=times)


def settling(num: int = 200) -> list[Served]:
    """Two seconds for the first ones, then one, with noise; one request every 0.1 s."""
    random = Random(1)
    return [served(0.1 * i, (2.0 if i < 40 else 1.0) + random.gauss(0, 0.05)) for i in range(num)]


def test_names_of_vllm_are_read_and_models_added_up() -> None:
    assert parse(METRICS % 5) == {"running": 4.0, "waiting": 7.0, "kv_share": 0.25, "preemptions": 5.0}
    assert parse("nothing of that kind") == {}


def watched(answers: list[str]) -> list[Sample]:
    """Samples of a server that gives these answers, one a request, and then leaves."""
    samples: list[Sample] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write((answers.pop(0) if answers else "HTTP/1.1 404 Not Found\r\n\r\n").encode())
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.wait_for(watch(Target(f"http://127.0.0.1:{port}"), samples, every=0.001), 5)

    asyncio.run(main())
    return samples


def test_the_time_line_counts_preemptions_of_this_run_and_ends_with_the_server() -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    samples = watched([head + METRICS % 5, head + METRICS % 8])
    assert [(s.running, s.preemptions) for s in samples] == [(4.0, 0.0), (4.0, 3.0)]
    assert watched([head + "up 1\n"]) == []


def test_the_beginning_that_is_unlike_the_rest_is_found() -> None:
    steady = steady_state(settling())
    assert steady.settled
    assert 3.9 <= steady.start <= 4.6
    assert mser([5.0, 5.0, *[1.0] * 20]) == 2


def test_a_queue_that_grows_for_ever_is_not_steady() -> None:
    assert not steady_state([served(0.1 * i, 1 + 0.2 * i) for i in range(200)]).settled
    assert not steady_state(settling(20)).settled  # too few to tell


def test_auto_leaves_the_beginning_out_of_the_summary() -> None:
    run = Run("x", settling(), [Sample(0.0), Sample(1.0, 4, 9, 0.5, 2)])
    summarize_run(run, Promise(), warmup=None, before=settling())
    assert run.summary["num_requests"] < 165
    assert run.summary["e2e"]["mean"] == pytest.approx(1.0, abs=0.02)
    assert run.summary["server"] == {
        "most_running": 4, "most_waiting": 9, "most_kv_share": 0.5, "preemptions": 2,
    }  # fmt: skip
    summarize_run(run, Promise(), warmup=0.0)
    assert run.summary["num_requests"] == 200


def test_tails_are_compared_as_well_as_means() -> None:
    calm, wild = settling(), [served(0.1 * i, 9.0 if i % 20 == 0 else 1.0) for i in range(200)]
    found = {d.measure: d for d in compare(calm, wild)}
    assert found["e2e_p99"].b == pytest.approx(9.0)
    assert found["e2e_p99"].is_clear
    assert found["e2e_p99"].low <= found["e2e_p99"].b - found["e2e_p99"].a <= found["e2e_p99"].high


def test_the_report_is_one_page_with_its_pictures(tmp_path: Path) -> None:
    runs = []
    for users in (1, 4):
        run = Run(f"{users} <users>", settling(), [Sample(0.0), Sample(9.0, 1, 2, 0.5, 1)], users=users)
        summarize_run(run, Promise(), warmup=0.0, before=settling())
        runs.append(run)
    write_report(tmp_path, runs, settling())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latency.png", "report.html", "sweep.png", "timeline.png"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "4 &lt;users&gt;" in page
    assert "within the noise" in page


@pytest.mark.parametrize("text", ["0", "1,x", "", "-1"])
def test_users_are_counts(text: str) -> None:
    with pytest.raises(ConfigError, match="1,4,16"):
        parse_users(text)
    assert parse_users("1,4") == [1, 4]
    assert parse_users(None) == [None]


@pytest.mark.parametrize("text", ["soon", "-1", "inf"])
def test_a_warm_up_is_seconds_or_auto(text: str) -> None:
    with pytest.raises(ConfigError, match="seconds from 0, or auto"):
        parse_warmup(text)
    assert parse_warmup("auto") is None
    assert parse_warmup("2.5") == 2.5
