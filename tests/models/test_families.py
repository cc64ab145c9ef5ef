"""Every family against transformers, on tiny members with random weights: logits of all positions and greedy tokens.

The folder is the list: a new family file is tested by being there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.core.types import Granularity
from pagoda.models import families
from pagoda.models.shape import ModelShape

from . import parity
from .kv_views import Dense, Paged

MEMBERS = {
    f"{name}-{member}": config
    for name in families.names()
    for member, config in families.family(name).members().items()
}
ROPE_LENGTH = max(parity.PROMPT_LENS) + parity.NEW_TOKENS
PAGES = ((16, Granularity.SEQUENCE), (8, Granularity.LAYER), (4, Granularity.HEAD))


@pytest.mark.parametrize("member", MEMBERS)
def test_parity_with_transformers(member: str) -> None:
    """Alone over dense KV, and in a ragged paged batch with chunked prefill: same logits, same 64 greedy tokens."""
    config = MEMBERS[member]
    twin = parity.twin(config)
    model = parity.load(config, twin.state_dict(), rope_length=ROPE_LENGTH)
    tokens = parity.prompts(model.shape.vocab_size)

    alone = parity.Run(model, Dense(), tokens[:1])
    alone.prefill(None)
    alone.decode(parity.NEW_TOKENS)
    parity.assert_same(alone.all_logits(0), alone.tokens[0], len(tokens[0]), twin, "alone")

    page_size, granularity = PAGES[list(MEMBERS).index(member) % len(PAGES)]
    paged = Paged(model.shape, len(tokens), page_size=page_size, granularity=granularity)
    batch = parity.Run(model, paged, tokens)
    batch.prefill(parity.CHUNKS)
    batch.decode(parity.NEW_TOKENS)
    assert batch.tokens[0] == alone.tokens[0]
    for s, prompt in enumerate(tokens):
        parity.assert_same(batch.all_logits(s), batch.tokens[s], len(prompt), twin, f"sequence {s} of a batch")


@pytest.mark.parametrize("member", MEMBERS)
def test_shape_is_that_of_the_tensors(member: str) -> None:
    """Bytes known beforehand are the bytes that are held, in every dtype; a random member computes in bfloat16."""
    shape = ModelShape.from_config(MEMBERS[member])
    for dtype in ("float32", "bfloat16"):
        model = parity.Model.from_config(MEMBERS[member], dtype=getattr(torch, dtype)).init_random()
        assert model.shape == shape
        assert model.weight_bytes == shape.weight_bytes(dtype)
    run = parity.Run(model, Dense(), parity.prompts(shape.vocab_size, (9, 3)))
    run.prefill(None)
    assert all(torch.isfinite(run.all_logits(s)).all() for s in range(2))


@pytest.mark.parametrize("name", families.names())
def test_saved_checkpoints_load(name: str, tmp_path: Any) -> None:
    """The names that transformers writes to disk (not always those of its state dict) fill the model completely."""
    from safetensors import safe_open

    config = families.family(name).tiny()
    twin = parity.twin(config)
    twin.save_pretrained(tmp_path)
    model = parity.Model.from_config(config)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            model.load_tensor(key, file.get_tensor(key))
    model.finish_loading()
    other = parity.load(config, twin.state_dict())
    for key, tensor in other.weights().items():
        assert torch.equal(tensor, model.weights()[key]), key


LONGROPE = families.family("phi3").tiny()
DYNAMIC = {**families.family("llama").members()["dynamic"], "max_position_embeddings": 64}


@pytest.mark.parametrize(("config", "length"), [(LONGROPE, 140), (DYNAMIC, 100)], ids=["longrope", "dynamic"])
def test_rotary_beyond_the_trained_length(config: dict[str, Any], length: int) -> None:
    """``rope_length`` chooses what transformers chooses for one sequence of that length."""
    twin = parity.twin(config)
    model = parity.load(config, twin.state_dict(), rope_length=length)
    run = parity.Run(model, Dense(), parity.prompts(model.shape.vocab_size, (length,)))
    run.prefill(((50,), (90,)))
    parity.assert_same(run.all_logits(0), run.tokens[0], length, twin, f"{length} tokens")


def test_short_factors_need_a_short_length() -> None:
    """LongRoPE: the long factors serve every sequence of a model that may see long ones, whatever its own length."""
    short, long = (parity.Model.from_config(LONGROPE, rope_length=n).init_random(std=0.5) for n in (128, 129))
    logits = []
    for model in (short, long):
        run = parity.Run(model, Dense(), parity.prompts(96, (20,)))
        run.prefill(None)
        logits.append(run.all_logits(0))
    assert not torch.allclose(*logits, atol=1e-3)
