"""Mixtures of experts as one program against the same layers op by op: every router, every format of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pagoda.models import families
from pagoda.models.model import Model
from pagoda.weights.packed import ExpertStack
from pagoda.weights.quantization import Quantization, in_panels, parse_format, parse_quantization

from . import parity
from .kv_views import Paged

pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")

WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}
MEMBERS = {
    f"{name}-{member}": config | {key: value for key, value in WIDE.items() if key in config}
    for name in ("deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
    for member, config in families.family(name).members().items()
}
CHUNKS = ((37, 9, 1), (20, 1, 3), (1, 1, 1))  # tokens of three sequences in each step
FORMATS = ["int8", "w8a8", "int4(group=32)", "w4a8(group=32)", "int5(group=48)", "nf4(group=32)", "fp8", "ternary"]
OPENED = ["int3", "int2"]  # codes that no panels hold: a matrix at a time


def made(member: str, quantization: Quantization, dtype: torch.dtype = torch.bfloat16) -> Model:
    state = parity.twin(MEMBERS[member]).state_dict()
    return parity.load(MEMBERS[member], state, dtype=dtype, rope_length=64, quantization=quantization)


def logits(model: Model, chunks: Sequence[Sequence[int]], seqs: Sequence[int] = (0, 1, 2)) -> list[torch.Tensor]:
    """Of the same random tokens of some of three sequences, step by step, in each sequence's order."""
    dtype = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[model.dtype]
    views, done = Paged(model.shape, 3, dtype=dtype), dict.fromkeys(seqs, 0)
    tokens = {
        s: torch.randint(3, model.shape.vocab_size, (64,), generator=torch.Generator().manual_seed(s)) for s in seqs
    }
    found: dict[int, list[torch.Tensor]] = {s: [] for s in seqs}
    for counts in chunks:
        ids = torch.cat([tokens[s][done[s] : done[s] + counts[s]] for s in seqs])
        positions = torch.cat([torch.arange(done[s], done[s] + counts[s]) for s in seqs])
        view = views(list(seqs), [counts[s] for s in seqs])
        with torch.inference_mode():
            rows = model.logits(model.forward(ids, positions, view))
        for s, part in zip(seqs, rows.split([counts[s] for s in seqs]), strict=True):
            found[s].append(part)
            done[s] += counts[s]
    return [torch.cat(found[s]) for s in seqs]


def op_by_op(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    assert model.op_by_op is None
    monkeypatch.setattr(model._decoder, "_program", None)
    return model


def check_equal(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logits(model, CHUNKS)
    parts = logits(op_by_op(model, monkeypatch), CHUNKS)
    assert all(bool(one.isfinite().all()) for one in whole)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_family_has_the_bits_of_its_ops(member: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax before the choice and behind it, normalized or not, with biases, with a shared expert and its gate."""
    check_equal(made(member, in_panels(str(dtype)[6:]), dtype), monkeypatch)


@pytest.mark.parametrize("text", FORMATS + OPENED)
def test_every_format_has_the_bits_of_its_ops(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(made("qwen2_moe-tiny", parse_quantization(text)), monkeypatch)


def test_experts_of_several_formats_have_the_bits_of_their_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some in panels and some not; down in another format than gate and up. They are added in the order of numbers."""
    formats = [parse_format(text) for text in ("int8", "w8a8", "bf16", "int3", "int4(group=32)")]
    plain = parse_format("bf16")
    names = [name for name, param in made("olmoe-tiny", in_panels("bfloat16")).weights().items()
             if isinstance(param, ExpertStack)]  # fmt: skip
    overrides = {
        f"{name}@{e}": formats[(e * (2 + place)) % len(formats)] for place, name in enumerate(names) for e in range(8)
    }
    check_equal(made("olmoe-tiny", Quantization(plain, plain, overrides)), monkeypatch)


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("qwen3_moe-tiny", "bf16"),
        ("gpt_oss-tiny", "bf16"),
        ("deepseek_v3-tiny", "bf16"),
        ("qwen2_moe-tiny", "w8a8"),
        ("mixtral-tiny", "int4(group=32)"),
    ],
)
def test_a_sequence_has_its_bits_whoever_is_beside_it(member: str, text: str) -> None:
    """Its tokens choose the same experts, each of which multiplies other tokens with it."""
    model = made(member, in_panels("bfloat16") if text == "bf16" else parse_quantization(text))
    together = logits(model, CHUNKS)
    for seq in range(3):
        assert torch.equal(logits(model, CHUNKS, (seq,))[0], together[seq])


def test_more_tokens_than_a_stretch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts are multiplied a stretch at a time, 1024 tokens of them: answers are added up over several."""
    config = MEMBERS["qwen3_moe-tiny"] | {"num_experts_per_tok": 7, "max_position_embeddings": 1024}
    state = parity.twin(config).state_dict()
    options: dict[str, Any] = {"dtype": torch.bfloat16, "rope_length": 1024, "quantization": in_panels("bfloat16")}
    model = parity.load(config, state, **options)
    ids = torch.randint(3, model.shape.vocab_size, (400,), generator=torch.Generator().manual_seed(1))
    found = []
    for program in (True, False):
        if not program:
            op_by_op(model, monkeypatch)
        views = Paged(model.shape, 4, dtype="bfloat16")  # of 128 tokens each
        with torch.inference_mode():
            positions = torch.arange(100).repeat(4)
            found.append(model.forward(ids, positions, views([0, 1, 2, 3], [100] * 4)))
    assert torch.equal(*found)


def test_why_experts_run_op_by_op() -> None:
    model = made("mixtral-tiny", in_panels("float32"), torch.float32)
    assert model.op_by_op is None
    assert made("mixtral-tiny", Quantization(), torch.float32).op_by_op == "weights in a format that no kernel knows"
