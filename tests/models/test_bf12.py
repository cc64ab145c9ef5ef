"""Models whose bfloat16 weights lie in twelve bits: the same answers in less memory, and every byte leased."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError
from pagoda.models.load import Loaded, load_model
from pagoda.models.placement import Room
from pagoda.models.quantize import quantize_model
from pagoda.models.stream_plan import StreamPlan
from pagoda.weights.packed import PanelMatrix
from pagoda.weights.quantization import parse_quantization

from . import fake_model
from .test_packed_file import same_experts, same_weights, write
from .test_quantized import logits

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

SIZES = {"hidden_size": 256, "intermediate_size": 328, "num_hidden_layers": 3, "torch_dtype": "bfloat16"}
MIXTURE = SIZES | {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "head_dim": 32, "norm_topk_prob": True,
}  # fmt: skip
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=3)
DOWN = "model.layers.1.mlp.down_proj.weight"


def folder_of(path: Path, **changes: Any) -> Path:
    return fake_model.write(path, dtype=torch.bfloat16, **SIZES | changes)


def scatter(folder: Path, name: str = DOWN) -> None:
    """That tensor's exponents lie as far apart as they can."""
    tensors = load_file(folder / "model.safetensors")
    bits = torch.randint(0, 110, tensors[name].shape, generator=torch.Generator().manual_seed(0)) << 7
    fake_model.save(folder, tensors | {name: bits.to(torch.int16).view(torch.bfloat16)})


def load(folder: Path, text: str = "bf12", **options: Any) -> Loaded:
    return load_model(folder, dtype="bfloat16", quantization=text, use_packed=False, **options)


def answers(folder: Path, text: str, **options: Any) -> list[Any]:
    with LLM(
        str(folder), dtype="bfloat16", quantization=text, memory="4GiB", kv_memory="1MiB", num_threads=1, **options
    ) as llm:
        found = llm.generate([[3, 9, 4, 70, 5], [8] * 40, [1, 2]], GREEDY)
        accounts = llm.stats()["memory"]["accounts"]["weights"]
        assert accounts["leased_bytes"] == accounts["resident_bytes"]
        return [(one.token_ids, one.logprobs) for one in found]


@pytest.mark.parametrize(
    "changes", [SIZES, SIZES | {"tie_word_embeddings": True}, MIXTURE], ids=["dense", "tied", "moe"]
)
@pytest.mark.parametrize("scattered", [False, True])
def test_answers_are_those_of_16_bits(tmp_path: Path, changes: dict[str, Any], scattered: bool) -> None:
    folder = folder_of(tmp_path / "m", **changes)
    if scattered:
        scatter(folder, "model.embed_tokens.weight")
    assert answers(folder, "bf12") == answers(folder, "bf16")
    assert torch.equal(logits(load(folder).model), logits(load(folder, "bf16").model))  # type: ignore[arg-type]


def test_float32_models_may_have_such_weights_too(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    ours, theirs = (load_model(folder, dtype="float32", quantization=text) for text in ("bf12", "bf16"))
    assert torch.equal(logits(ours.model), logits(theirs.model))  # type: ignore[arg-type]


@pytest.mark.parametrize("scattered", [False, True])
def test_what_is_held_is_leased(tmp_path: Path, scattered: bool) -> None:
    folder, ledger = folder_of(tmp_path / "m"), Ledger(64 << 20)
    if scattered:
        scatter(folder)
    loaded = load(folder, ledger=ledger)
    planned = loaded.shape.weight_bytes("bfloat16", loaded.quantization)
    model = loaded.model
    assert ledger.leased_by("weights") == model.weight_bytes == planned + model.beyond_bytes  # type: ignore[union-attr]
    whole = load(folder, "bf16").model.weight_bytes
    assert planned < 0.77 * whole
    down = model.weights()["layers.1.mlp.down.weight"]  # type: ignore[union-attr]
    assert isinstance(down, PanelMatrix)
    assert down.format.name == ("bf16" if scattered else "bf12")
    words = ", 1 matrices in 16 bits (their exponents lie too far apart for bf12)" if scattered else ""
    assert loaded.placement == f"resident{words}"
    loaded.close()
    assert ledger.leased_bytes == 0


def needed_bytes(folder: Path, text: str) -> int:
    """The least ledger that loads it."""
    ledger = Ledger(1 << 30)
    load(folder, text, ledger=ledger).close()
    return ledger.report().peak_bytes


def test_a_budget_for_twelve_bits_and_not_for_sixteen(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", intermediate_size=2048)
    budget = needed_bytes(folder, "bf12")
    assert budget < needed_bytes(folder, "bf16")
    load(folder, ledger=Ledger(budget)).close()
    with pytest.raises(BudgetError):
        load(folder, "bf16", ledger=Ledger(budget))


def test_a_matrix_that_would_exceed_the_budget_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", intermediate_size=2048)
    budget = needed_bytes(folder, "bf12")
    scatter(folder)
    ledger = Ledger(budget)
    with pytest.raises(BudgetError, match=rf"exponents of {DOWN} lie too far apart.*--quantization bf16") as caught:
        load(folder, ledger=ledger)
    assert "\n" not in str(caught.value)
    assert ledger.leased_bytes == 0


def stream_of(folder: Path, room: int, text: str = "bf12", **options: Any) -> tuple[Loaded, StreamPlan]:
    loaded = load(folder, text, weights="stream", room=lambda *_: Room(room, room), **options)
    assert loaded.stream is not None
    return loaded, loaded.stream


def test_what_stays_on_disk_is_read_in_16_bits_and_what_is_kept_takes_12(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", intermediate_size=2048)
    whole = load(folder, "bf16")
    least, plan = stream_of(folder, 0, "bf16")
    least.close()
    room = plan.num_bytes + 2 * whole.model.weight_bytes // 3
    ledger = Ledger(256 << 20)
    ours, plan = stream_of(folder, room, ledger=ledger)
    theirs, other = stream_of(folder, room, "bf16")
    assert 0 < plan.step_bytes < 0.75 * other.step_bytes
    assert ours.model.weight_bytes == plan.resident_bytes + ours.model.beyond_bytes  # type: ignore[union-attr]
    assert ours.model.weight_bytes < ledger.leased_by("weights") <= ours.model.weight_bytes + plan.passing_bytes
    wanted = logits(whole.model)  # type: ignore[arg-type]
    assert all(torch.equal(logits(one.model), wanted) for one in (ours, theirs))  # type: ignore[arg-type]
    for one in (ours, theirs):
        one.close()


def test_experts_in_a_cache_have_16_bits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", **MIXTURE)
    ours, plan = stream_of(folder, 0)
    assert (plan.num_experts, plan.expert_slots) == (12, 2)
    assert torch.equal(logits(ours.model), logits(load(folder, "bf16").model))  # type: ignore[arg-type]
    ours.close()


@pytest.mark.parametrize("changes", [SIZES, MIXTURE], ids=["dense", "moe"])
def test_a_packed_file_has_windows_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = folder_of(tmp_path / "m", **changes)
    if changes is SIZES:
        scatter(folder)
    file = write(folder, "bf12", dtype="bfloat16")
    plain, mapped = load(folder), load_model(folder, dtype="bfloat16", quantization="bf12")
    assert mapped.placement == f"resident, mapped from {file}"
    if changes is SIZES:
        assert same_weights(plain, mapped)
    else:
        assert same_experts(plain, mapped)
    assert torch.equal(logits(plain.model), logits(mapped.model))  # type: ignore[arg-type]
    assert "mapped" not in load_model(folder, dtype="bfloat16", quantization="bf16").placement


def test_a_checkpoint_in_that_format(tmp_path: Path) -> None:
    """On disk it is bf16."""
    folder = folder_of(tmp_path / "m")
    quantize_model(load_model(folder, quantization="none"), tmp_path / "q", parse_quantization("bf12"))
    stored = load_model(tmp_path / "q", dtype="bfloat16")
    assert str(stored.quantization) == "bf12(embed='none')"
    assert same_weights_as(stored, load(folder))
    again, plan = stream_of(tmp_path / "q", 0)
    assert plan.streamed
    assert torch.equal(logits(again.model), logits(stored.model))  # type: ignore[arg-type]
    again.close()


def same_weights_as(one: Loaded, other: Loaded) -> bool:
    ours, theirs = one.model.weights(), other.model.weights()  # type: ignore[union-attr]
    dense = [[w if isinstance(w, torch.Tensor) else w.dense() for w in found.values()] for found in (ours, theirs)]
    return all(torch.equal(a, b) for a, b in zip(*dense, strict=True))
