"""Where eight exact sequences of 2048 tokens fit, 28 run at once with a quarter of their KV, from beginning to end.

Counted in pages, and in the metrics of the server.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from pagoda.core.types import KVFormat
from pagoda.engine.async_llm import AsyncLLM
from pagoda.engine.engine import Engine
from pagoda.engine.outputs import RequestOutput

from ..engine.tiny import make_model
from .conftest import OPTIONS, Running, running

EXACT, AT_ONCE = 8, 28
PROMPT, LENGTH = 1664, 2048
FMT = KVFormat(2, 2, 8, 8, 16, "float32")  # of the tiny model
PAGES = {"page_size": FMT.page_size, "enable_prefix_caching": False}
POOL = {"kv_memory": EXACT * FMT.blocks_for(LENGTH) * FMT.block_bytes, "max_num_seqs": 48}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The tiny model, in a pool of eight."""
    model = make_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=LENGTH)
    llm = AsyncLLM(str(model), **OPTIONS | POOL | PAGES, max_num_batched_tokens=LENGTH)
    with running(llm) as server:
        assert llm.kv_format == FMT
        yield server
    asyncio.run(llm.close())


def metric(server: Running, name: str, label: str = "") -> float:
    """The sum of a metric's samples whose labels have this one."""
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found, name
    return sum(float(value) for labels, value in found if label in labels)


class Doorkeeper:
    """Takes the engine's steps: none until all have come, and none while somebody looks at all of them answering."""

    def __init__(self, step: Callable[[Engine], list[RequestOutput]]) -> None:
        self._step, self._have_come = step, False
        self.is_holding, self.seen = Event(), Event()

    def __call__(self, engine: Engine) -> list[RequestOutput]:
        self._have_come |= len(engine._requests) == AT_ONCE
        answering = [s for s in engine.scheduler.running.values() if s.num_computed >= s.prompt_len + 16]
        if len(answering) == AT_ONCE and not self.seen.is_set():
            self.is_holding.set()
        elif self._have_come:
            return self._step(engine)
        time.sleep(0.001)
        return []


@pytest.mark.parametrize(
    ("kv", "grain", "answer", "slots"),
    [
        ("streaming_llm(budget=512)", "sequence", LENGTH - PROMPT, 512),
        ("h2o(budget=384)", "head", LENGTH - PROMPT, 384),
    ],
)
def test_a_pool_of_eight_runs_28_to_their_end_with_a_quarter(
    server: Running, monkeypatch: pytest.MonkeyPatch, kv: str, grain: str, answer: int, slots: int
) -> None:
    """All 28 answer at once, and nobody is pushed out. ``slots``: what a head holds at the end.

    These budgets hold in the answer too; ``h2o`` also holds what came since its last act. ``snapkv(budget=0.25)``
    compresses the prompt alone: 28 x (416 + answer) slots fit into 16,384 for answers of up to 169 tokens; of 384 they
    push each other out (docs/kv-speed.md).
    """
    doorkeeper = Doorkeeper(Engine.step)
    monkeypatch.setattr(Engine, "step", lambda engine: doorkeeper(engine))
    body = {"max_tokens": answer, "ignore_eos": True, "temperature": 0, "kv": kv}
    preempted = metric(server, "vllm:num_preemptions_total")
    prompts = [[(17 * index + 3 * token) % 256 for token in range(PROMPT)] for index in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        asked = [threads.submit(server.post, "/v1/completions", body | {"prompt": ids}, timeout=120) for ids in prompts]
        try:
            assert doorkeeper.is_holding.wait(30), "they never answered all at once"
            assert metric(server, "vllm:num_requests_running") == AT_ONCE
            pages = metric(server, "pagoda_kv_pages", f'granularity="{grain}"')
        finally:
            doorkeeper.seen.set()
    assert AT_ONCE * FMT.blocks_for(slots // 2) < pages / FMT.pages_per_block <= AT_ONCE * FMT.blocks_for(slots)
    assert [one.result().json()["usage"]["completion_tokens"] for one in asked] == [answer] * AT_ONCE
    assert metric(server, "vllm:num_preemptions_total") == preempted
    assert metric(server, "pagoda_kv_pages", f'granularity="{grain}"') == 0
