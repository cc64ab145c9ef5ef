"""A pool of eight exact sequences runs 28 at once with a quarter of their KV: in pages, and in the server's metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pagoda.engine.async_llm import AsyncLLM

from .conftest import OPTIONS, Running, running
from .misbehaving import raw_stream, until

EXACT, AT_ONCE = 8, 28


@contextmanager
def pool_of(lantern: AsyncLLM, length: int) -> Iterator[Running]:
    """A server whose pool is EXACT sequences of ``length`` tokens."""
    fmt = lantern.kv_format
    pool = {"kv_memory": EXACT * fmt.blocks_for(length) * fmt.block_bytes, "max_num_seqs": 48}
    pool |= {"max_num_batched_tokens": length}  # else the first go on for long until the last begin
    llm = AsyncLLM("lantern", **OPTIONS | pool, enable_prefix_caching=False)
    with running(llm) as server:
        yield server
    asyncio.run(llm.close())


def metric(server: Running, name: str, label: str = "") -> float:
    """The sum of a metric's samples whose labels have this one."""
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found, name
    return sum(float(value) for labels, value in found if label in labels)


@pytest.mark.parametrize(
    ("length", "kv"), [(256, "h2o(budget=64)"), (256, "streaming_llm(budget=64)"), (2048, "snapkv(budget=0.25)")]
)
def test_a_pool_of_eight_runs_28_at_once_with_a_quarter(lantern: AsyncLLM, length: int, kv: str) -> None:
    fmt = lantern.kv_format
    pool_pages = EXACT * fmt.blocks_for(length) * fmt.pages_per_block
    body = {"max_tokens": 600, "ignore_eos": True, "temperature": 0, "stream": True, "kv": kv}
    with pool_of(lantern, length) as server, ExitStack() as stack:
        for index in range(AT_ONCE):
            prompt = [8 + (17 * index + 3 * token) % 200 for token in range(length * 13 // 16)]
            stack.enter_context(raw_stream(server, body | {"prompt": prompt}))
        until(lambda: metric(server, "vllm:num_requests_running") == AT_ONCE, 60)
        steps = server.stats()["steps"]["steps"]
        until(lambda: server.stats()["steps"]["steps"] > steps + 40, 60)  # all of them go on
        assert metric(server, "vllm:num_requests_running") == AT_ONCE
        assert metric(server, "vllm:num_preemptions_total") == 0
        grain = "sequence" if kv.startswith("streaming") else "head"
        pages = metric(server, "pagoda_kv_pages", f'granularity="{grain}"')
        assert AT_ONCE / 2 * fmt.pages_per_block < pages <= pool_pages
