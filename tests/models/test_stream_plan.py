"""Which matrices stay, and models whose budget is below their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, WeightsError
from pagoda.models import dtype_choice
from pagoda.models.load import load_model
from pagoda.models.placement import Room
from pagoda.models.quantize import quantize_model
from pagoda.models.shape import ModelShape
from pagoda.models.stream_plan import plan_stream
from pagoda.weights.quantization import parse_quantization

from . import fake_model

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

CONFIG = fake_model.CONFIG | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [1]]


def load(folder: Path, room: int | None, weights: str = "auto", **options: Any) -> Any:
    rooms = None if room is None else lambda *_: Room(room, room)
    return load_model(folder, weights=weights, room=rooms, ledger=Ledger(256 << 20), **options)


def test_a_plan_keeps_what_fits_and_counts_every_byte() -> None:
    shape = ModelShape.from_config(CONFIG)
    for text, dtype in (("fp32", "float32"), ("int4(group=32)", "bfloat16")):
        packing = parse_quantization(text)
        whole = shape.weight_bytes(dtype, packing)
        nothing, everything = (
            plan_stream(shape, dtype, packing, 0),
            plan_stream(shape, dtype, packing, 2 * whole + (1 << 20)),
        )
        assert (everything.streamed, everything.num_bytes, everything.step_bytes) == ((), whole, 0)
        assert nothing.resident_bytes + nothing.step_bytes == whole
        steps = [plan_stream(shape, dtype, packing, nothing.num_bytes + extra) for extra in range(0, whole, whole // 9)]
        for plan, extra in zip(steps, range(0, whole, whole // 9), strict=True):
            assert plan.num_bytes <= nothing.num_bytes + extra
            assert plan.resident_bytes + plan.step_bytes == whole
        assert [p.step_bytes for p in steps] == sorted((p.step_bytes for p in steps), reverse=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "olmo2"])
def test_the_tokens_of_a_model_in_memory(tmp_path: Path, tied: bool, family: str) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG | {"model_type": family, "tie_word_embeddings": tied})
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with LLM(str(folder), memory="4GiB", weights="resident") as llm:
        wanted = [llm.generate(prompt, params)[0].token_ids for prompt in PROMPTS]
        assert llm.stats()["model"]["weights"] == "resident"
    loaded = load(folder, 0, "stream")
    assert loaded.stream.streamed
    loaded.close()
    with LLM(str(folder), memory="4GiB", weights="stream") as llm:
        together = [out.token_ids for out in llm.generate(PROMPTS, params)]
        alone = [llm.generate(prompt, params)[0].token_ids for prompt in PROMPTS]
    assert together == alone == wanted


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("text", ["auto", "int4(group=32)", "int5", "int8"])
def test_partly_kept_models_compute_the_same(tmp_path: Path, share: float, text: str) -> None:
    """Checkpoints in plain numbers and those of ``pagoda quantize``; leases are what is held, and all go back."""
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    if text != "auto":
        quantize_model(load_model(folder, quantization="none"), tmp_path / "q", parse_quantization(text))
        folder = tmp_path / "q"
    plain = load(folder, None)
    least = plan_stream(plain.shape, plain.dtype, plain.quantization, 0)
    ledger = Ledger(256 << 20)
    room = least.num_bytes + int(share * least.step_bytes)
    streamed = load_model(folder, weights="stream", room=lambda *_: Room(room, room), ledger=ledger)
    assert bool(streamed.stream.streamed) is (share < 1)
    assert ledger.leased_by("weights") <= max(room, plain.model.weight_bytes + 8192)
    ids = torch.arange(9)
    for name, weight in plain.model.weights().items():
        other = streamed.model.weights()[name]
        if isinstance(weight, torch.Tensor):
            assert torch.equal(weight, other)
        else:
            assert torch.equal(weight.rows(ids), other.rows(ids))
            x = torch.randn(2, weight.shape[1])
            if name == "embed.weight":  # untied: only looked up
                continue
            assert torch.equal(weight.linear(x), other.linear(x))
    streamed.close()
    assert ledger.leased_bytes == 0


def test_auto_streams_only_where_it_must(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG | {"vocab_size": 384, "num_hidden_layers": 40})
    whole = load(folder, None).model.weight_bytes
    assert load(folder, whole).stream is None
    assert load(folder, whole - 1).stream is not None
    assert load(folder, whole - 1, "resident").stream is None
    with pytest.raises(ConfigError, match="weights 'often'; accepted: auto, resident, sparse-ffn, stream"):
        load(folder, None, "often")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_half_precision_is_converted_while_it_streams(tmp_path: Path, dtype: str) -> None:
    """float16 on a CPU runs in float32, or in bfloat16 where that is asked for: the tokens of the model in memory."""
    folder = fake_model.write(tmp_path / "half", dtype=torch.float16, **CONFIG | {"torch_dtype": "float16"})
    params, tokens = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True), {}
    for weights in ("resident", "stream"):
        with LLM(str(folder), memory="4GiB", weights=weights, dtype=dtype) as llm:
            tokens[weights] = [out.token_ids for out in llm.generate(PROMPTS, params)]
    assert tokens["resident"] == tokens["stream"]
    ledger = Ledger(256 << 20)
    loaded = load_model(folder, weights="stream", room=lambda *_: Room(0, 0), ledger=ledger, dtype=dtype)
    stored = sum(m.rows * m.cols * 2 for m in loaded.shape.matrices)
    assert 0.95 * stored < loaded.stream.step_bytes <= 1.05 * stored, "what lies on disk is read, not what it becomes"
    assert ledger.leased_by("weights") <= loaded.stream.num_bytes
    loaded.close()


def test_what_cannot_be_streamed_is_refused_by_the_reason(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG | {"vocab_size": 2000, "num_hidden_layers": 12})
    with pytest.raises(ConfigError, match=r"\(a plain tensor is not multiplied as it is stored\); `pagoda quantize`"):
        load(folder, 0, "stream", quantization="none")
    assert load(folder, 0, quantization="none").stream is None
    with pytest.raises(
        BudgetError, match="nearest .*; its weights cannot be left on disk: no matrix.*plain.*`pagoda quantize`"
    ):
        load_model(folder, quantization="none", room=lambda *_: Room(0, 0), ledger=Ledger(7 << 20))


def test_a_value_that_is_no_number_stops_the_step_that_reads_it(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    tensors = fake_model.weights(CONFIG)
    tensors["model.layers.3.mlp.down_proj.weight"][3, 3] = torch.inf
    fake_model.save(folder, tensors)
    streamed = load(folder, 0, "stream")
    with pytest.raises(WeightsError, match=r"tensor 'model.layers.3.mlp.down_proj.weight': a value is infinite"):
        streamed.model.weights()["layers.3.mlp.down.weight"].linear(torch.zeros(1, 128))
    streamed.close()


def test_plain_tensors_of_a_half_precision_model_that_does_not_fit_are_offered_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_choice, "TINY_PARAMS", 0)
    folder = fake_model.write(tmp_path / "half", dtype=torch.float16, **CONFIG | {"torch_dtype": "float16"})
    ledger = Ledger(6800 << 10)
    with pytest.raises(BudgetError, match="nearest .*; dtype bfloat16 takes half, with 8 of float16's 11 bits"):
        load_model(folder, weights="resident", quantization="none", ledger=ledger)
    assert ledger.leased_bytes == 0
    for packed in ("auto", "int8"):
        with pytest.raises(BudgetError) as refused:
            load_model(folder, weights="resident", quantization=packed, ledger=Ledger(6800 << 10))
        assert "bfloat16" not in str(refused.value), "packed weights take the same in any dtype"
