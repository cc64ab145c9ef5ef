"""The load generator against a server of a few lines that says when what came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pagoda.bench.load import Target, closed_loop, open_loop
from pagoda.bench.records import Run, read_records, write_records
from pagoda.bench.timeline import Sample
from pagoda.bench.traces import draw
from pagoda.core.errors import ConfigError
from pagoda.plan.simulator.sequence import Served

Handler = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


def event(data: dict[str, Any] | str) -> bytes:
    text = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """As many tokens as were asked for, 5 ms apart; the usage says that half of the prompt was cached."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(body["max_tokens"]):
        await asyncio.sleep(0.005)
        whole = event({"choices": [{"text": "x"}]})
        writer.write(whole[:9])  # cut in the middle of an event
        await writer.drain()
        writer.write(whole[9:])
    cached = {"cached_tokens": len(body["prompt"]) // 2}
    writer.write(
        event({"choices": [], "usage": {"completion_tokens": body["max_tokens"], "prompt_tokens_details": cached}})
    )
    writer.write(event("[DONE]") + b"0\r\n\r\n")


async def busy(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nlate")


async def broken(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + event({"choices": [{"text": "x"}]}))


def against(
    handler: Handler, run: Callable[[Target], Awaitable[list[Served]]]
) -> tuple[list[Served], list[dict[str, Any]], int]:
    """The records, the bodies that came, and how many requests were open at once at most."""
    bodies: list[dict[str, Any]] = []
    most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, now_open
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)) | {"head": head})
        now_open += 1
        most = max(most, now_open)
        await handler(bodies[-1], writer)
        now_open -= 1
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> list[Served]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await run(Target(f"http://127.0.0.1:{port}", "m", "secret", seconds=5.0))

    now_open = 0
    return asyncio.run(main()), bodies, most


ARRIVALS = draw("poisson", 12, 100.0, seed=2, prompt=20, output=4, tenants=2)


def test_open_loop_keeps_the_times_of_the_trace() -> None:
    records, bodies, _ = against(answer, lambda target: open_loop(target, ARRIVALS))
    assert [len(r.token_at) for r in records] == [a.num_output for a in ARRIVALS] == [r.num_output for r in records]
    assert all(a.at <= r.at < a.at + 0.5 for a, r in zip(ARRIVALS, records, strict=True))
    assert all(after > before for r in records for before, after in pairwise([r.at, *r.token_at]))
    assert [r.num_cached for r in records] == [a.num_prompt // 2 for a in ARRIVALS]
    sent = {(tuple(b["prompt"]), b["user"], b["max_tokens"]) for b in bodies}
    assert sent == {(tuple(a.prompt(1000)), a.tenant, a.num_output) for a in ARRIVALS}
    assert "authorization: bearer secret" in bodies[0]["head"]
    assert bodies[0]["model"] == "m"


def test_closed_loop_never_has_more_than_its_users_open() -> None:
    seen: list[int] = []
    records, _, most = against(
        answer, lambda target: closed_loop(target, ARRIVALS, 3, lambda done, of: seen.append(done))
    )
    assert len(records) == len(ARRIVALS)
    assert most == 3
    assert seen == list(range(1, 13))


def test_what_fails_is_told_and_the_rest_goes_on() -> None:
    refused, _, _ = against(busy, lambda target: open_loop(target, ARRIVALS[:2]))
    assert [r.error for r in refused] == ["HTTP/1.1 429 Too Many Requests: late"] * 2
    cut, _, _ = against(broken, lambda target: open_loop(target, ARRIVALS[:2]))
    assert all("closed in the middle of the answer" in r.error for r in cut)
    nobody = asyncio.run(open_loop(Target("http://127.0.0.1:9"), ARRIVALS[:1]))
    assert "ConnectionRefusedError" in nobody[0].error


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://x", "http://", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        Target(url)


def test_a_run_is_kept_and_read_again(tmp_path: Path) -> None:
    records, _, _ = against(answer, lambda target: open_loop(target, ARRIVALS[:3]))
    write_records(tmp_path, Run("x", records, [Sample(0.5, waiting=3.0)], {"x": 1}))
    again = read_records(tmp_path / "serve.json")
    assert [len(r.token_at) for r in again] == [len(r.token_at) for r in records]
    assert again[0].at == records[0].at
    assert json.loads((tmp_path / "serve.json").read_text())["timeline"][0]["waiting"] == 3.0
    (tmp_path / "serve.json").write_text('{"requests": [{"when": 1}]}')
    with pytest.raises(ConfigError, match="no serve.json"):
        read_records(tmp_path / "serve.json")
