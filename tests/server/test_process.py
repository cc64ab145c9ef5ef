"""`pagoda serve` as a process: signals, a full disk under its log, the death of its engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from .misbehaving import LONG, SHORT, until


@contextmanager
def process(*args: str, stderr: Any = subprocess.PIPE, stdout: Any = subprocess.PIPE, env: Any = None, port: int = 0):
    """``pagoda serve lantern`` as people start it; yields (process, url)."""
    code = "import sys; from pagoda.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "lantern", "--memory", "1GiB", "--threads", "1", "--json"]
    child = subprocess.Popen(
        [*command, "--port", str(port), *args], stdout=stdout, stderr=stderr, env={**os.environ, **(env or {})}
    )
    try:
        if stdout is subprocess.PIPE:
            assert child.stdout is not None
            ready = json.loads(child.stdout.readline())
            assert ready["ready_seconds"] > 0
            assert {"python", "import", "weights", "listening"} <= ready["startup_seconds"].keys()
            yield child, ready["url"]
        else:
            url = f"http://127.0.0.1:{port}"
            until(lambda: _answers(url), 60)
            yield child, url
    finally:
        child.kill()
        child.wait(10)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


async def _sigterm_under_load(child: subprocess.Popen[bytes], url: str) -> list[Any]:
    """16 streams; SIGTERM once all have begun. What each of them saw."""
    begun = 0

    async def one(client: httpx.AsyncClient, number: int) -> Any:
        nonlocal begun
        lines = []
        body = LONG | {"max_tokens": 12 if number % 2 else 1900}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                begun += not lines
                lines += [line] if line else []
        return lines

    async with httpx.AsyncClient(timeout=60) as client:
        tasks = [asyncio.create_task(one(client, number)) for number in range(16)]
        while begun < 16:
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        late = await client.post(f"{url}/v1/completions", json=SHORT)
        ready = await client.get(f"{url}/ready")
        return [late, ready, *await asyncio.gather(*tasks)]


def test_sigterm_under_load_finishes_or_says_why() -> None:
    with process("--drain-timeout", "3") as (child, url):
        late, ready, *streams = asyncio.run(_sigterm_under_load(child, url))
        assert child.wait(20) == 0
    assert late.status_code == ready.status_code == 503
    assert late.json()["error"]["code"] == "draining"
    assert "retry-after" in late.headers
    finished = 0
    for lines in streams:
        assert lines[-1] == "data: [DONE]"
        last = json.loads(lines[-2].removeprefix("data: "))
        if "error" in last:
            assert last["error"]["code"] == "shutting_down"
        else:
            finished += last["choices"][0]["finish_reason"] == "length"
    assert finished >= 8, "the short answers had the time"


def test_a_second_signal_ends_at_once() -> None:
    with process() as (child, url), httpx.stream("POST", f"{url}/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()  # kept: a generator that is dropped closes the stream
        next(lines)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 128 + signal.SIGTERM


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # what a stream could not write it tries again at the end, or not
def test_a_full_disk_under_the_log_costs_no_answer(unbuffered: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full, process(stderr=full, stdout=full, port=port, env=environment) as (child, url):
        for _ in range(3):
            assert httpx.post(f"{url}/v1/completions", json=SHORT, timeout=30).status_code == 200
            assert httpx.post(f"{url}/v1/completions", json={"nope": 1}).status_code == 400
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0


CRASH = """
import sys, threading, time
from pagoda.engine import engine
step, count = engine.Engine.step, [0]
def dying(self):
    count[0] += 1
    if count[0] > 20:
        raise MemoryError("the scheduler lost its mind")
    return step(self)
engine.Engine.step = dying
from pagoda.cli.main import main
main(["serve", "lantern", "--memory", "1GiB", "--threads", "1", "--json", "--port", "0"])
"""


def test_the_engines_death_is_told_to_everybody_and_ends_the_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", CRASH], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    url = json.loads(child.stdout.readline())["url"]
    with httpx.Client(timeout=20) as client, client.stream("POST", f"{url}/v1/completions", json=LONG) as answer:
        lines = [line for line in answer.iter_lines() if line]
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["code"] == "engine_closed"
    assert "lost its mind" in error["message"]
    assert child.wait(20) == 1
    child.stdout.close()
