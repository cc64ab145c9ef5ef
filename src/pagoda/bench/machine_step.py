"""What a step costs that multiplies next to nothing: taken from tiny random models that differ in one thing each."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..core.types import DTYPE_BYTES
from ..engine.build import build
from ..engine.config import EngineConfig
from ..engine.intake import Intake
from ..kv.offload.storage import LEAST_HEADS
from ..models.model import Model
from ..models.resolve import resolve
from ..plan.machine import FarCosts
from ..sampling.params import SamplingParams
from ..weights.writer import write_tensors

FEW, MANY, WIDE = 2, 26, 65536
NUM_STEPS, BATCH = 40, 16
FAR_PROMPT, FAR_LENGTH = 72, 128
FEW_PAGES, MANY_PAGES, LONG_PROMPT = 2, 32, 1000
_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def step_costs() -> tuple[float, float, float, float]:
    """Seconds of a step, of each of its layers, of each sequence, and of each logit of a sequence.

    Four models of hidden size 64: few and many layers, one and several sequences, a small and a large vocabulary.
    """
    base = decode_seconds(layers=FEW, sequences=1)
    layer = max(0.0, decode_seconds(layers=MANY, sequences=1) - base) / (MANY - FEW)
    row = max(0.0, decode_seconds(layers=FEW, sequences=BATCH) - base) / (BATCH - 1)
    wide = decode_seconds(layers=FEW, sequences=BATCH, vocab=WIDE)
    narrow = decode_seconds(layers=FEW, sequences=BATCH)
    sample = max(0.0, wide - narrow) / (BATCH * (WIDE - 2048))
    return max(0.0, base - FEW * layer - row), layer, row, sample


def far_costs() -> FarCosts:
    """What a lower tier costs a step, in memory: whole heads, one group of them and two, and chosen pages, few and many
    of them.
    """

    def beside(kv: str, heads: int, prompt: int = FAR_PROMPT) -> float:
        near, far = (
            decode_seconds(layers=MANY, sequences=1, heads=heads, prompt=prompt, kv=way) for way in ("exact", kv)
        )
        return max(0.0, far - near) / MANY

    one, two = beside("offload", 1), beside("offload", 2)
    few = beside(f"quest(pages={FEW_PAGES})+offload", 1)
    many = beside(f"quest(pages={MANY_PAGES})+offload", 1, LONG_PROMPT)
    group, page = min(max(0.0, two - one), one), max(0.0, many - few) / (MANY_PAGES - FEW_PAGES)
    return FarCosts(layer=one - group, group=group, choose=max(0.0, few - FEW_PAGES * page), page=page)


def decode_seconds(
    *, layers: int, sequences: int, vocab: int = 2048, heads: int = 1, prompt: int = 8, kv: str = "exact"
) -> float:
    """The median decode step of a random model, with lantern's tokenizer, through the whole engine. With ``kv`` in a
    lower tier, a window of as many heads as must be, so that each comes alone where prompts are ``FAR_PROMPT`` long.
    """
    options: dict[str, Any] = {}
    if kv != "exact":
        options = {"kv_offload": "64MiB", "max_model_len": max(FAR_LENGTH, prompt + NUM_STEPS + 16), "kv": kv}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), layers, vocab, heads)
        if options:
            head_bytes = FAR_LENGTH * 2 * (64 // heads) * DTYPE_BYTES["bfloat16"]
            options["kv_window"] = "8MiB" if "quest" in kv else LEAST_HEADS * head_bytes
        built = build(
            EngineConfig(folder, dtype="bfloat16", max_num_batched_tokens=256, structured_output=False, **options)
        )
        try:
            engine, intake = built.engine, Intake(built)
            params = SamplingParams(temperature=0, max_tokens=NUM_STEPS + 8, ignore_eos=True, kv=kv)
            for number in range(sequences):
                engine.add(intake.request(f"step-{number}", [number + 3] * prompt, params))
            for _ in range(4):
                engine.step()
            times = []
            for _ in range(NUM_STEPS):
                started = time.perf_counter()
                engine.step()
                times.append(time.perf_counter() - started)
            return statistics.median(times)
        finally:
            built.close()


def _write(folder: Path, layers: int, vocab: int, heads: int) -> None:
    config = _CONFIG | {"num_hidden_layers": layers, "vocab_size": vocab, "eos_token_id": 1, "bos_token_id": 1}
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 64 // heads}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(resolve("lantern") / "tokenizer.json", folder / "tokenizer.json")
    generator = torch.Generator().manual_seed(0)
    shapes = Model.from_config(config).expected_tensors()
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() * 0.1 for name, shape in shapes.items()}
    write_tensors(folder / "model.safetensors", tensors)
