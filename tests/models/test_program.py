"""The decoder as one program against the same decoder op by op, and against transformers: every family that has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.core.types import Granularity
from pagoda.models import families
from pagoda.weights.quantization import in_panels, parse_quantization

from . import parity
from .kv_views import Dense, Paged

pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")

MEMBERS = {
    f"{name}-{member}": config
    for name in families.names()
    for member, config in families.family(name).members().items()
}
ROPE_LENGTH = max(parity.PROMPT_LENS) + parity.NEW_TOKENS
PAGES = ((16, Granularity.SEQUENCE), (8, Granularity.LAYER), (4, Granularity.HEAD))
OP_BY_OP = {
    "a mixture of experts": {"gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"},
    "latent attention": {"deepseek_v3"},
}


def panels(config: dict[str, Any], state: dict[str, torch.Tensor]) -> parity.Model:
    return parity.load(config, state, rope_length=ROPE_LENGTH, quantization=in_panels("float32"))


@pytest.mark.parametrize("member", MEMBERS)
def test_program_equals_transformers(member: str) -> None:
    config = MEMBERS[member]
    twin = parity.twin(config)
    model = panels(config, twin.state_dict())
    reason = model.op_by_op
    if reason is not None:
        assert member.split("-")[0] in OP_BY_OP[reason]
        pytest.skip(f"op by op: {reason}")
    tokens = parity.prompts(model.shape.vocab_size)
    page_size, granularity = PAGES[list(MEMBERS).index(member) % len(PAGES)]
    batch = parity.Run(model, Paged(model.shape, len(tokens), page_size=page_size, granularity=granularity), tokens)
    batch.prefill(parity.CHUNKS)
    batch.decode(parity.NEW_TOKENS)
    for s, prompt in enumerate(tokens):
        parity.assert_same(batch.all_logits(s), batch.tokens[s], len(prompt), twin, f"sequence {s} of a batch")


@pytest.mark.parametrize("member", ["llama-tiny", "gemma2-tiny", "stablelm-tiny", "cohere2-tiny"])
def test_program_equals_ops_in_bfloat16(member: str) -> None:
    """Where the reference rounds, the program rounds: logits of the same weights differ by accumulation order alone."""
    config = MEMBERS.get(member) or next(c for name, c in MEMBERS.items() if name.startswith(member.split("-")[0]))
    state = parity.twin(config).state_dict()
    options = {"dtype": torch.bfloat16, "rope_length": ROPE_LENGTH, "quantization": in_panels("bfloat16")}
    model = parity.load(config, state, **options)
    assert model.op_by_op is None
    logits = []
    for view in (Dense(), paged_bfloat16(model)):
        run = parity.Run(model, view, parity.prompts(model.shape.vocab_size, (33, 5)))
        run.prefill(((20, 2), (20, 3)))
        logits.append(torch.cat([run.all_logits(0), run.all_logits(1)]))
    error = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert error < 0.02


def paged_bfloat16(model: parity.Model) -> Paged:
    return Paged(model.shape, 2, dtype="bfloat16")


def test_integer_weights_run_as_one_program() -> None:
    config = MEMBERS["llama-tiny"] if "llama-tiny" in MEMBERS else families.family("llama").tiny()
    model = parity.load(
        config, parity.twin(config).state_dict(), rope_length=ROPE_LENGTH, quantization=parse_quantization("int8")
    )
    assert model.op_by_op is None
    runs = []
    for view in (Dense(), Paged(model.shape, 4)):
        run = parity.Run(model, view, parity.prompts(model.shape.vocab_size))
        run.prefill(parity.CHUNKS)
        run.decode(16)
        runs.append(run.tokens)
    assert runs[0] == runs[1]


def test_a_page_that_does_not_exist_is_refused() -> None:
    config = families.family("llama").tiny()
    model = panels(config, parity.twin(config).state_dict())
    paged = Paged(model.shape, 1)
    view = paged([0], [3])
    arrays = view.arrays()
    assert arrays is not None
    arrays.page_ids[0, 0, 0] = 10**6
    with pytest.raises(IndexError, match="page"):
        model.forward(torch.tensor([4, 5, 6]), torch.arange(3), view)
