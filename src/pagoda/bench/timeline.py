"""What a server's queues and KV did while load was on it: its ``/metrics``, read a few times a second.

Names are vLLM's, which Pagoda shares (docs/observability.md). A server without them gives an empty line of time.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from .load import Target

SECONDS = 0.5
NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_share",
    "vllm:gpu_cache_usage_perc": "kv_share",  # vLLM before 0.10
    "vllm:num_preemptions_total": "preemptions",
}
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? ([-+0-9.eE]+|NaN)")


@dataclass(frozen=True, slots=True)
class Sample:
    """``at`` seconds after the load began: sequences that run and wait, share of the KV in use, preemptions so far."""

    at: float
    running: float = 0.0
    waiting: float = 0.0
    kv_share: float = 0.0
    preemptions: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def watch(target: Target, samples: list[Sample], every: float = SECONDS) -> None:
    """Adds a sample every ``every`` seconds until it is cancelled; ends by itself where there are no such metrics."""
    started, first = time.perf_counter(), None
    while True:
        try:
            found = parse(await fetch(target))
        except (OSError, ValueError, EOFError, TimeoutError):
            return
        if not found:
            return
        first = found.get("preemptions", 0.0) if first is None else first
        found["preemptions"] = found.get("preemptions", 0.0) - first
        samples.append(Sample(time.perf_counter() - started, **found))
        await asyncio.sleep(every)


def parse(text: str) -> dict[str, float]:
    """The samples of Prometheus' text whose names are known; those of several models are added up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        name = NAMES.get(match[1]) if match else None
        if match and name:
            found[name] = found.get(name, 0.0) + float(match[2])
    return found


async def fetch(target: Target) -> str:
    """``GET /metrics``. Raises ValueError for another status than 200, or what the connection raises."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*target.address)
        try:
            key = f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
            host, port = target.address
            writer.write(f"GET /metrics HTTP/1.0\r\nHost: {host}:{port}\r\n{key}\r\n".encode())
            head, _, body = (await reader.read(-1)).decode("utf-8", "replace").partition("\r\n\r\n")
        finally:
            writer.close()
    if " 200 " not in head.split("\r\n")[0]:
        raise ValueError(head.split("\r\n")[0])
    return body
