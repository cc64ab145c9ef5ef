"""Load on a server that speaks OpenAI's API: arrivals as they come, or so many users who wait for their answers.

Prompts are sent as token ids, so their lengths and their common beginnings are exactly those of the trace, whatever the
model. One connection a request, plain HTTP/1.1 over asyncio: nothing between the socket and the clock.
"""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import ConfigError
from ..plan.simulator.sequence import Served
from .traces import Arrival

READ_BYTES = 1 << 20
REACH_SECONDS = 10.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how it is asked. ``seconds``: after so long without its last token a request has failed."""

    url: str
    model: str | None = None
    api_key: str | None = None
    vocab_size: int = 1000
    seconds: float = 600.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme != "http" or not urlsplit(self.url).hostname:
            raise ConfigError(f"url is {self.url!r}; give the server as http://HOST:PORT")

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    def request(self, arrival: Arrival) -> bytes:
        """The whole HTTP request. Answers have exactly ``num_output`` tokens where ``ignore_eos`` is understood."""
        body: dict[str, Any] = {
            "prompt": arrival.prompt(self.vocab_size),
            "max_tokens": arrival.num_output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if arrival.priority:
            body["priority"] = arrival.priority
        if self.model is not None:
            body["model"] = self.model
        if arrival.tenant:
            body["user"] = arrival.tenant
        host, port = self.address
        data = json.dumps(body).encode()
        head = [
            f"POST {urlsplit(self.url).path.rstrip('/')}/v1/completions HTTP/1.1", f"Host: {host}:{port}",
            "Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close",
            *([f"Authorization: Bearer {self.api_key}"] if self.api_key else []),
        ]  # fmt: skip
        return "\r\n".join(head).encode() + b"\r\n\r\n" + data


async def open_loop(target: Target, arrivals: Sequence[Arrival], progress: Progress | None = None) -> list[Served]:
    """Every request at its time, however many are open: what users do who do not know of each other."""
    started, done = time.perf_counter(), 0

    async def one(arrival: Arrival) -> Served:
        nonlocal done
        await asyncio.sleep(arrival.at - (time.perf_counter() - started))
        record = await ask(target, arrival, started)
        done += 1
        if progress is not None:
            progress(done, len(arrivals))
        return record

    return list(await asyncio.gather(*(one(arrival) for arrival in arrivals)))


async def closed_loop(
    target: Target, arrivals: Sequence[Arrival], users: int, progress: Progress | None = None
) -> list[Served]:
    """``users`` at once, each asking the next request as soon as its last answer is there; times of the trace do not
    matter.
    """
    if users < 1:
        raise ConfigError(f"users is {users}; give 1 or more")
    started, todo, records = time.perf_counter(), iter(arrivals), list[Served]()

    async def user() -> None:
        for arrival in todo:
            records.append(await ask(target, arrival, started))
            if progress is not None:
                progress(len(records), len(arrivals))

    await asyncio.gather(*(user() for _ in range(users)))
    return records


async def reach(target: Target) -> None:
    """Raises ConfigError where nobody listens: it is said at once, not after a load of which nothing was answered."""
    try:
        async with asyncio.timeout(REACH_SECONDS):
            _, writer = await asyncio.open_connection(*target.address)
    except (OSError, TimeoutError) as error:
        why = str(error) or f"nothing for {REACH_SECONDS:g} s"
        raise ConfigError(f"{target.url}: no server is there ({why}); start it first, or give another URL") from error
    writer.close()


async def ask(target: Target, arrival: Arrival, started: float) -> Served:
    """One request, now. What goes wrong is told in ``error``; times are seconds since ``started``."""
    data = target.request(arrival)
    record = Served(time.perf_counter() - started, arrival.num_prompt, 0, arrival.tenant, token_at=array("d"))
    try:
        async with asyncio.timeout(target.seconds):
            await _exchange(target, data, record, started)
    except (OSError, ValueError, EOFError, TimeoutError) as error:
        record.error = f"{type(error).__name__}: {error}"
    if not record.error and not record.token_at:
        record.error = "the stream ended without a token"
    return record


async def _exchange(target: Target, data: bytes, record: Served, started: float) -> None:
    reader, writer = await asyncio.open_connection(*target.address, limit=READ_BYTES)
    try:
        writer.write(data)
        await writer.drain()
        status = (await reader.readline()).decode("latin-1").strip().split(None, 2)
        chunked = False
        while (line := (await reader.readline()).strip()) != b"":
            chunked |= line.lower().startswith(b"transfer-encoding:") and b"chunked" in line.lower()
        if len(status) < 2 or status[1] != "200":
            told = await reader.read(300)
            record.error = f"{' '.join(status)}: {told.decode('utf-8', 'replace')}"
            return
        async for event in _events(_chunks(reader) if chunked else _plain(reader)):
            _note(event, record, time.perf_counter() - started)
    finally:
        writer.close()


def _note(event: dict[str, Any], record: Served, now: float) -> None:
    if event.get("error"):
        record.error = str(event["error"])
    if any(choice.get("text") for choice in event.get("choices", [])):
        record.token_at.append(now)
        record.num_output += 1
    usage = event.get("usage")
    if usage:
        record.num_output = usage["completion_tokens"]
        record.num_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The bodies of HTTP chunks. Raises EOFError where the connection ends before the last one."""
    while True:
        line = await reader.readline()
        if not line:
            raise EOFError("the connection was closed in the middle of the answer")
        size = int(line.split(b";")[0], 16)
        if not size:
            return
        yield await reader.readexactly(size)
        await reader.readline()


async def _plain(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(65536):
        yield part


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of server-sent events; ``[DONE]`` ends them."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                text = line[5:].strip()
                if text == b"[DONE]":
                    return
                yield json.loads(text)
