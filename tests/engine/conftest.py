"""One tiny model for all engine tests, and its answers computed one prompt at a time by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import LLM
from pagoda.bench.random_calibrations import calibrate_at_random

from .tiny import make_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("tiny"))
    calibrate_at_random(folder, num_layers=2, num_heads=2, head_dim=8)
    return folder


@pytest.fixture(scope="session")
def oracle(tiny: Path) -> Callable[[list[int], int], list[int]]:
    """Greedy ids by transformers' own generate, alone and uncached by us."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def greedy(ids: list[int], num: int) -> list[int]:
        key = (tuple(ids), num)
        if key not in known:
            with torch.inference_mode():
                batch = torch.tensor([ids])
                out = model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    max_new_tokens=num,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            known[key] = out[0, len(ids) :].tolist()
        return known[key]

    greedy.model = model  # type: ignore[attr-defined]
    return greedy


@pytest.fixture
def make_llm(tiny: Path, request: pytest.FixtureRequest) -> Any:
    """``make_llm(**options)``: an audited LLM on the tiny model, closed when the test ends."""
    made: list[LLM] = []
    usual = {"memory": "2GiB", "kv_memory": "1MiB", "audit": True, "num_threads": 1}
    usual["device"] = request.config.getoption("--device")

    def make(model: str | Path = tiny, **options: Any) -> LLM:
        llm = LLM(str(model), **usual | options)
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


def kv_bytes(num_blocks: int, page_size: int = 8) -> int:
    """Bytes of so many blocks of the tiny model: 2 layers x 2 heads x (8 + 8) float32 a slot."""
    return num_blocks * 2 * 2 * 16 * 4 * page_size
