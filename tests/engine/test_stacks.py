"""Weights in bitstack follow the budget while requests run: exact bytes, and no KV of another size."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pagoda import AsyncLLM, SamplingParams
from pagoda.budget import Ledger, MachineProbe, heap_bytes
from pagoda.core.errors import BudgetError, WeightsError
from pagoda.engine.budgeting import set_budgets
from pagoda.engine.build import Built, build
from pagoda.engine.config import EngineConfig
from pagoda.engine.ground import Ground
from pagoda.engine.intake import Intake
from pagoda.models.load import load_model
from pagoda.models.quantize import quantize_model
from pagoda.weights.quantization import parse_quantization

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPT = [(7 * i) % 250 for i in range(100)]
PLENTY = 2 << 30
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stacks") / "q"
    quantize_model(load_model(tiny, quantization="none"), out, parse_quantization("bitstack(blocks=4, rank=2)"))
    shutil.copy(tiny / "tokenizer.json", out)
    return out


def engine_of(folder: Path, num_bytes: int, **options: Any) -> Built:
    """On a ledger of its own, without the process in it: budgets can be said to the byte."""
    ground = Ground(Ledger(num_bytes), MachineProbe(), None, heap_bytes(), False)
    return build(EngineConfig(str(folder), structured_output=False, num_threads=1, **options), ground=ground)


def others_of(built: Built) -> int:
    """What is neither weights nor KV."""
    ledger = built.ledger
    return ledger.leased_bytes - ledger.leased_by("weights") - ledger.leased_by("kv") - ledger.leased_by("policies")


def tokens_of(built: Built, prompt: list[int] = PROMPT) -> tuple[list[int], int]:
    """Greedy tokens, and how many of the prompt were in the prefix cache."""
    built.engine.add(Intake(built).request(f"r{next(NUMBERS)}", prompt, GREEDY))
    while built.engine.has_work:
        outputs = built.engine.step()
    assert outputs[-1].error is None
    return outputs[-1].token_ids, outputs[-1].usage.cached_tokens


def budgets(built: Built) -> list[int]:
    """From one block of each matrix to room for all, beside KV of an eighth or more."""
    stacks = built.loaded.stacks
    assert stacks is not None
    least, whole = stacks.least_bytes, stacks.bytes_in(None)
    assert least < whole
    sizes = [least + (whole - least) * i // 3 for i in range(4)]
    return [others_of(built) + size + max(built.sizes.least_kv_bytes, size // 7 + 1) for size in sizes]


def test_the_budget_says_how_many_blocks_there_are(folder: Path) -> None:
    built = engine_of(folder, PLENTY)
    stacks = built.loaded.stacks
    assert stacks is not None
    assert built.loaded.placement == "resident"
    kept, answers = [], []
    for total in budgets(built):
        assert set_budgets(built, total) == total
        kept.append(stacks.num_kept)
        assert built.ledger.leased_by("weights") == built.loaded.model.weight_bytes
        assert built.ledger.leased_bytes <= total
        answers.append(tokens_of(built))
    assert kept == sorted(kept)
    assert kept[-1] == stacks.num_levels > kept[1] > kept[0]
    assert answers[0] != answers[-1]
    for total, num, answer in zip(budgets(built), kept, answers, strict=True):
        read: list[tuple[int, int]] = []
        fresh = engine_of(folder, total, progress=lambda *at, read=read: read.append(at))
        assert fresh.loaded.stacks is not None
        assert fresh.loaded.stacks.num_kept == num
        assert read[-1][0] == read[-1][1] <= fresh.loaded.model.weight_bytes + 4096  # no more than stays was read
        assert (f"bitstack: {num} of" in fresh.loaded.placement) == (num < stacks.num_levels)
        assert tokens_of(fresh) == answer
        fresh.close()
    built.audit()
    built.close()
    assert built.ledger.leased_bytes == 0


def test_kv_is_found_again_by_its_own_size_only(folder: Path, tmp_path: Path) -> None:
    built = engine_of(folder, PLENTY, kv_dir=str(tmp_path))
    small, large = budgets(built)[0], budgets(built)[-1]
    whole = tokens_of(built)[0]
    assert tokens_of(built) == (whole, 96)
    built.engine.add(Intake(built).request("across", [9, *PROMPT], GREEDY))
    for _ in range(4):
        built.engine.step()
    set_budgets(built, small)
    while built.engine.has_work:
        across = built.engine.step()
    assert len(across[-1].token_ids) == 24
    least, cached = tokens_of(built)
    assert (least != whole, cached) == (True, 0)
    set_budgets(built, large)
    back, cached = tokens_of(built)
    assert (back, cached > 0) == (whole, True)
    plain = engine_of(folder, PLENTY, enable_prefix_caching=False)
    mixed, alone = [9, *PROMPT, *across[-1].token_ids], tokens_of(plain, [9, *PROMPT, *across[-1].token_ids])[0]
    assert tokens_of(built, mixed)[0] == alone  # nothing of what was computed across the move was kept
    plain.close()
    built.audit()
    built.close()
    again = engine_of(folder, PLENTY, kv_dir=str(tmp_path))
    assert tokens_of(again, mixed)[0] == alone
    again.close()


def test_resize_weights_while_requests_run(folder: Path) -> None:
    async def scene() -> None:
        async with AsyncLLM(str(folder), memory="3GiB", structured_output=False, num_threads=1) as llm:
            whole = llm.loaded.model.weight_bytes
            wanted = (await llm.generate_one(PROMPT, GREEDY)).token_ids
            assert llm.loaded.stacks is not None
            least = llm.loaded.stacks.least_bytes
            seen: list[int] = []
            async for output in llm.generate(PROMPT[1:], GREEDY):
                if not seen:  # several tokens may come at once
                    assert await llm.resize_weights(least + 100) == least
                seen = output.token_ids
            assert len(seen) == 24
            await llm.set_budget("2GiB")
            assert llm.loaded.model.weight_bytes == least  # said by hand: no budget brings more
            await llm.sleep()
            other = (await llm.generate_one(PROMPT, GREEDY)).token_ids
            assert llm.loaded.model.weight_bytes == least
            assert await llm.resize_weights("auto") == whole
            assert (await llm.generate_one(PROMPT, GREEDY)).token_ids == wanted != other
            await llm.audit()

    asyncio.run(scene())


def test_what_cannot_be_changes_nothing(folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    built = engine_of(mine, PLENTY)
    small = budgets(built)[0]
    with pytest.raises(BudgetError, match=r"nearest budget that can is (\d+)MiB") as error:
        set_budgets(built, small - (1 << 20))
    nearest = int(str(error.value).rpartition(" ")[2].removesuffix("MiB")) << 20
    assert set_budgets(built, nearest) == nearest
    set_budgets(built, small)
    stacks = built.loaded.stacks
    assert stacks is not None
    kept = stacks.num_kept
    os.utime(mine / "model.safetensors", ns=(0, 0))
    with pytest.raises(WeightsError, match="changed while tensor"):
        set_budgets(built, PLENTY)
    assert (stacks.num_kept, built.ledger.total_bytes) == (kept, small)
    assert len(tokens_of(built)[0]) == 24
    built.close()
    resident = engine_of(folder, PLENTY, weights="resident")
    with pytest.raises(BudgetError, match="leaves no room for KV"):
        set_budgets(resident, small)
    resident.close()
