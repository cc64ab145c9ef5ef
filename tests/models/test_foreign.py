"""Checkpoints that others quantized: read to the exact numbers that they stand for, packed where a format can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pagoda.budget.ledger import Ledger
from pagoda.core.errors import PagodaError, WeightsError
from pagoda.kernels.packed_bytes import NF4_LEVELS as LEVELS
from pagoda.models.load import Loaded, load_model
from pagoda.weights.packed import PackedMatrix
from pagoda.weights.quantization import format_text

from ..weights import writers
from . import fake_model
from .test_quantized import logits

CONFIG = fake_model.CONFIG | {"hidden_size": 64, "intermediate_size": 128}
FP4 = (0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, 0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25)
Writer = Callable[[torch.Tensor], writers.Stored]


def ct(layout: str, bits: int, kind: str = "int", dynamic: bool = False, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind, **weights}}
    if dynamic:
        group["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


GROUPS = {"strategy": "group", "group_size": 32}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SYM = "int4(embed='none', group=32, symmetric=True, scale='float32')"
ASYM = "int4(embed='none', group=32, scale='float32')"
NF4 = "nf4(embed='none')"


def compressed(*args: Any, **options: Any) -> Writer:
    return lambda w: writers.compressed(w, *args, **options)


CASES: dict[str, tuple[dict[str, Any], Writer, str]] = {
    "gptq": (GPTQ, writers.gptq, SYM),
    "gptq asymmetric": (GPTQ | {"sym": False}, lambda w: writers.gptq(w, symmetric=False), ASYM),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda w: writers.gptq(w, v2=True), SYM),
    "gptq mixed order": (GPTQ | {"desc_act": True}, lambda w: writers.gptq(w, mixed=True), "none"),
    "gptq 8 bits": (GPTQ | {"bits": 8}, lambda w: writers.gptq(w, bits=8), "none"),
    "gptq whole rows": (GPTQ | {"group_size": -1}, lambda w: writers.gptq(w, w.shape[1]), SYM.replace("32,", "64,")),
    "awq": (AWQ, writers.awq, ASYM),
    "ct int4": (ct("pack-quantized", 4, symmetric=True, **GROUPS), compressed("pack-quantized"), SYM),
    "ct int4 asymmetric": (
        ct("pack-quantized", 4, symmetric=False, **GROUPS), compressed("pack-quantized", symmetric=False), ASYM
    ),
    "ct int8": (ct("int-quantized", 8, strategy="channel"), compressed("int-quantized"), "int8(embed='none')"),
    "ct fp8": (
        ct("float-quantized", 8, "float", strategy="channel"), compressed("float-quantized"), "fp8(embed='none')"
    ),
    "bnb int8": (BNB8, writers.bnb8, "int8(embed='none')"),
    "bnb nf4": (BNB4, lambda w: writers.bnb4(w, LEVELS), NF4),
    "bnb nf4 nested": (BNB4, lambda w: writers.bnb4(w, LEVELS, nested=True), NF4),
    "bnb fp4": (BNB4 | {"bnb_4bit_quant_type": "fp4"}, lambda w: writers.bnb4(w, FP4, "fp4"), "none"),
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], writer: Writer, **changes: Any) -> tuple[Path, Path]:
    """A quantized checkpoint, and the same numbers unpacked."""
    plain = fake_model.write(folder / "plain", **(CONFIG | changes))
    packed = fake_model.write(folder / "packed", **(CONFIG | changes), quantization_config=config)
    unpacked, stored = fake_model.weights(CONFIG | changes), dict[str, torch.Tensor]()
    for name, tensor in list(unpacked.items()):
        if "_proj" in name and name.endswith("weight"):
            module = name.removesuffix(".weight")
            parts, unpacked[name] = writer(tensor)
            stored |= {f"{module}.{part}": t.contiguous() for part, t in parts.items()}
        else:
            stored[name] = tensor
    save_file(unpacked, plain / "model.safetensors")
    save_file(stored, packed / "model.safetensors")
    return plain, packed


def same(ours: Loaded, theirs: Loaded) -> None:
    for name, wanted in theirs.model.weights().items():
        found = ours.model.weights()[name]
        torch.testing.assert_close(dense(found), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_exact_numbers_and_format(tmp_path: Path, name: str) -> None:
    config, writer, text = CASES[name]
    plain, packed = write(tmp_path, config, writer)
    ledger, leased = Ledger(64 << 20), set[int]()
    ours = load_model(packed, ledger=ledger, progress=lambda *_: leased.add(ledger.leased_by("weights")))
    same(ours, load_model(plain, quantization="none"))
    assert leased == {ours.model.weight_bytes} == {ours.shape.weight_bytes("float32", ours.quantization)}
    weight = ours.model.weights()["layers.0.attn.qkv.weight"]
    quantized = isinstance(weight, PackedMatrix) and weight.format.name != "fp32"  # that is the model's own type
    found = format_text(weight.format) if quantized else "none"
    assert found == text
    torch.testing.assert_close(logits(ours.model), logits(load_model(plain).model), rtol=1e-4, atol=1e-4)
    ours.close()
    assert ledger.leased_bytes == 0


@pytest.mark.parametrize("name", ["gptq", "awq", "bnb nf4 nested"])
def test_unpacked_and_packed_anew_when_asked(tmp_path: Path, name: str) -> None:
    plain, packed = write(tmp_path, *CASES[name][:2])
    same(load_model(packed, quantization="none"), load_model(plain, quantization="none"))
    again, wanted = (load_model(folder, quantization="int8") for folder in (packed, plain))
    for param, weight in wanted.model.weights().items():
        torch.testing.assert_close(dense(again.model.weights()[param]), dense(weight), rtol=0, atol=1e-5)


def dense(weight: torch.Tensor | PackedMatrix) -> torch.Tensor:
    return weight.dense() if isinstance(weight, PackedMatrix) else weight


def test_dynamic_activations_are_kept(tmp_path: Path) -> None:
    config = ct("int-quantized", 8, dynamic=True, strategy="channel")
    _, packed = write(tmp_path, config, lambda w: writers.compressed(w, "int-quantized"))
    assert load_model(packed).model.weights()["layers.1.mlp.down.weight"].format.name == "w8a8"


def test_a_fallback_model_reads_them_unpacked(tmp_path: Path) -> None:
    _, packed = write(tmp_path, *CASES["gptq"][:2])
    plain = tmp_path / "plain"
    for folder in (plain, packed):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "helium", "head_dim": 16}))
    ours, theirs = load_model(packed).model.weights(), load_model(plain).model.weights()
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-6, atol=1e-7)


def _drop(name: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def _cut(name: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


Q = "model.layers.1.self_attn.q_proj"
Damage = Callable[[dict[str, torch.Tensor]], Any]
ACCEPTED = "accepted: awq, bitsandbytes, compressed_tensors, gptq"
WHOLE = ("qweight", "qzeros", "scales", "g_idx")
BAD: dict[str, tuple[str, dict[str, Any], Damage, str]] = {
    "unknown method": ("gptq", {"quant_method": "quip"}, lambda t: None, f"unknown quant_method 'quip'; {ACCEPTED}"),
    "bits": ("gptq", {"bits": 5}, lambda t: None, r"unknown gptq bits .*5.*; accepted: 2, 4, 8"),
    "type": ("gptq", {"bits": "4"}, lambda t: None, r"bits is '4'; expected int"),
    "version": ("awq", {"version": "gemv"}, lambda t: None, r"unknown awq version 'gemv'"),
    "layout": ("ct int8", {"format": "marlin-24"}, lambda t: None, r"unknown compressed-tensors format 'marlin-24'"),
    "part is missing": ("gptq", {}, _drop(f"{Q}.scales"), rf"tensor '{Q}.scales' is missing"),
    "shape": ("awq", {}, _cut(f"{Q}.scales"), rf"model.safetensors: tensor '{Q}.scales' has shape \[1, 64\]"),
    "absmax": ("bnb nf4", {}, _cut(f"{Q}.weight.absmax"), rf"{Q}.weight.absmax"),
    "state": ("bnb nf4", {}, _cut(f"{Q}.weight.quant_state.bitsandbytes__nf4"), "is not a bitsandbytes state"),
    "mixed": ("gptq", {}, lambda t: t.update({f"{Q}.weight": torch.zeros(64, 64)}), "both packed and plain"),
    "whole module": ("gptq", {}, lambda t: [t.pop(f"{Q}.{p}") for p in WHOLE], rf"missing.*{Q}.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_are_one_line_and_leave_nothing(tmp_path: Path, name: str) -> None:
    case, changes, damage, words = BAD[name]
    config, writer, _ = CASES[case]
    _, packed = write(tmp_path, config | changes, writer)
    from safetensors.torch import load_file

    tensors = load_file(packed / "model.safetensors")
    damage(tensors)
    save_file(tensors, packed / "model.safetensors")
    ledger = Ledger(64 << 20)
    with pytest.raises(PagodaError, match=words) as caught:
        load_model(packed, ledger=ledger)
    assert isinstance(caught.value, WeightsError)
    assert "\n" not in str(caught.value)
    assert ledger.leased_bytes == 0
