"""An engine on a GPU: its memory follows the pool, the budget moves while it runs, and sleep and close give all back.

What it says is held to the CPU's tokens by the engine's other tests, run with ``--device cuda``.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
import torch

from pagoda import LLM, AsyncLLM, SamplingParams
from pagoda.core.errors import BudgetError

from .tiny import make_model, prompt

pytestmark = pytest.mark.gpu
MIB = 1 << 20
WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "num_hidden_layers": 8}
PROMPTS = [prompt(70 + i, 300) for i in range(32)]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
TOKEN_BYTES = 8 * 8 * 2 * 64 * 4


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("wide"), **WIDE)


def free_bytes() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def test_memory_follows_the_pool_and_the_budget_and_close_gives_it_back(wide: Path) -> None:
    LLM(str(wide), device="cuda", memory="1GiB").generate([PROMPTS[0]], GREEDY)  # CUDA's own context and kernels
    before = free_bytes()
    with LLM(str(wide), device="cuda", memory="1GiB", audit=True) as llm:
        loaded = free_bytes()
        assert before - loaded < 100 * MIB, "weights, and no page before somebody needs one"
        outputs = llm.generate(PROMPTS, GREEDY)
        kv = llm.stats()["kv"]["touched_bytes"]
        assert 32 * 300 * TOKEN_BYTES < kv <= 1024 * MIB
        assert loaded - free_bytes() >= kv
        assert llm.set_budget("300MiB") == 300 * MIB
        assert loaded - free_bytes() < 300 * MIB, "cached prefixes gave way, and their bytes are the device's again"
        outputs += llm.generate(PROMPTS, GREEDY)
        memory = llm.stats()["memory"]
        assert memory["peak_leased_bytes"] <= 1024 * MIB
        assert memory["resident_bytes"] <= memory["total_bytes"] == 300 * MIB
        with pytest.raises(BudgetError, match="no room for KV"):
            llm.set_budget("16MiB")
        llm.set_budget("2GiB")
        outputs += llm.generate(PROMPTS, GREEDY)
    assert [len(output.token_ids) for output in outputs] == [8] * 96  # which tokens: products round by the batch's size
    assert before - free_bytes() < 16 * MIB


def test_requests_choose_their_own_format(wide: Path) -> None:
    with LLM(str(wide), device="cuda", memory="1GiB", audit=True) as llm:
        exact, small = (SamplingParams(temperature=0, max_tokens=4, kv=kv) for kv in ("exact", "int8"))
        outputs = llm.generate(PROMPTS[:8], [exact, small] * 4)
        assert all(output.error is None for output in outputs)
        formats = llm.stats()["kv"]["formats"]
        assert formats["int8"]["leased_bytes"] < formats["float32"]["leased_bytes"] / 2


def test_asleep_it_holds_no_device_memory(wide: Path) -> None:
    async def scene() -> None:
        before = free_bytes()
        async with AsyncLLM(str(wide), device="cuda", memory="1GiB") as llm:
            said = (await llm.generate_one(PROMPTS[0], GREEDY)).token_ids
            await asyncio.gather(*(llm.generate_one(ids, GREEDY) for ids in PROMPTS))
            assert before - free_bytes() > 300 * MIB
            assert await llm.sleep() > 300 * MIB
            # 96 MiB on an H200: cuBLAS' workspaces and kernels, which the engine's thread has for good.
            assert before - free_bytes() < 128 * MIB
            assert (await llm.generate_one(PROMPTS[0], GREEDY)).token_ids == said

    asyncio.run(scene())


def test_more_than_the_device_has_is_refused(wide: Path) -> None:
    with pytest.raises(BudgetError, match="ask for at most"):
        LLM(str(wide), device="cuda", memory="4TiB")
