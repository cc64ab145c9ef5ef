"""A pool of eight exact sequences runs 28 at once with a quarter of their KV: in pages, and in the server's metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pagoda.engine.async_llm import AsyncLLM

from .conftest import OPTIONS, Running, running
from .misbehaving import raw_stream, until

LENGTH, EXACT, AT_ONCE = 256, 8, 28
QUARTER = LENGTH // 4


@pytest.fixture
def small_pool(lantern: AsyncLLM) -> Iterator[Running]:
    """A server whose pool is EXACT sequences of LENGTH tokens."""
    fmt = lantern.kv_format
    pool = {"kv_memory": EXACT * fmt.blocks_for(LENGTH) * fmt.block_bytes, "max_num_seqs": 48}
    llm = AsyncLLM("lantern", **OPTIONS | pool, enable_prefix_caching=False)
    with running(llm) as server:
        yield server
    asyncio.run(llm.close())


def metric(server: Running, name: str, label: str = "") -> float:
    """The sum of a metric's samples whose labels have this one."""
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found, name
    return sum(float(value) for labels, value in found if label in labels)


@pytest.mark.parametrize("kv", [f"h2o(budget={QUARTER})", f"streaming_llm(budget={QUARTER})"])
def test_a_pool_of_eight_runs_28_at_once_with_a_quarter(small_pool: Running, kv: str) -> None:
    server, fmt = small_pool, small_pool.service.llm.kv_format
    pool_pages = EXACT * fmt.blocks_for(LENGTH) * fmt.pages_per_block
    body = {"max_tokens": 600, "ignore_eos": True, "temperature": 0, "stream": True, "kv": kv}
    with ExitStack() as stack:
        for index in range(AT_ONCE):
            prompt = [8 + (17 * index + 3 * token) % 200 for token in range(LENGTH - 48)]
            stack.enter_context(raw_stream(server, body | {"prompt": prompt}))
        until(lambda: metric(server, "vllm:num_requests_running") == AT_ONCE, 60)
        steps = server.stats()["steps"]["steps"]
        until(lambda: server.stats()["steps"]["steps"] > steps + 40, 60)  # all of them go on
        assert metric(server, "vllm:num_requests_running") == AT_ONCE
        assert metric(server, "vllm:num_preemptions_total") == 0
        grain = "head" if kv.startswith("h2o") else "sequence"
        pages = metric(server, "pagoda_kv_pages", f'granularity="{grain}"')
        assert AT_ONCE / 2 * fmt.pages_per_block < pages <= pool_pages
