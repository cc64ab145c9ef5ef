"""GGUF files written by the ``gguf`` package: the same numbers and tokens as the model in its other form."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import ModelError, PagodaError, UnsupportedModelError, WeightsError
from pagoda.models.catalog import folder_of, read_config
from pagoda.models.layers.rotary import inverse_frequencies
from pagoda.models.load import load_model
from pagoda.models.quantize import quantize_model
from pagoda.models.stream_plan import plan_stream
from pagoda.plan.subject import Subject
from pagoda.weights.gguf_blocks import OPENERS, Blocks, open_blocks
from pagoda.weights.gguf_header import TYPES
from pagoda.weights.packed import ExpertStack, PackedMatrix
from pagoda.weights.quantization import parse_quantization

from . import fake_model
from .tokenizer_samples import data

gguf = pytest.importorskip("gguf")

LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
STACKS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(
    folder: Path,
    file: Path,
    kind: str = "F32",
    extra: dict[str, torch.Tensor] | None = None,
    part_tensors: int = 0,
    **metadata: Any,
) -> Path:
    """The Hugging Face model of ``folder`` as llama.cpp's converter would write it; in parts of so many tensors."""
    file.parent.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    arch = config["model_type"].removesuffix("_text").replace("_", "")
    writer = gguf.GGUFWriter(file, arch, split_max_tensors=part_tensors)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    (_sentencepiece if (folder / "native").is_dir() else _byte_level)(writer, folder)
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32}.get(type(value), writer.add_float32)
        add(key.replace("__", "."), value)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    for name, tensor in _stacked(load_file(folder / "model.safetensors")).items():
        _add(writer, name, tensor.float(), kind, arch, config if arch == "llama" else {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer as one tensor, as llama.cpp has them."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        layer, experts, rest = name.partition(".mlp.experts.")
        if experts:
            expert, _, module = rest.partition(".")
            found.setdefault(f"{layer}.{STACKS[module.split('.')[0]]}.weight", {})[int(expert)] = tensor
        else:
            found[name] = tensor
    return {n: torch.stack([t[e] for e in sorted(t)]) if isinstance(t, dict) else t for n, t in found.items()}


def _add(writer: Any, name: str, tensor: torch.Tensor, kind: str, arch: str, config: dict[str, Any]) -> None:
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    inner = ".".join(parts[3:])
    known = LAYER | dict(zip(STACKS.values(), STACKS.values(), strict=True))
    if arch.startswith("gemma"):
        known["post_attention_layernorm"] = "post_attention_norm"
        tensor = tensor + 1 if module.endswith("norm") else tensor
    theirs = OUTSIDE.get(module) or f"blk.{parts[2]}.{known[inner]}"
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(theirs.rpartition(".")[2], "")
    if heads in config:  # rotary pairs side by side
        shape = (config[heads], 2, -1, *tensor.shape[1:])
        tensor = tensor.reshape(shape).transpose(1, 2).reshape(tensor.shape)
    array = tensor.contiguous().numpy()
    if kind == "F32" or array.ndim < 2 or array.shape[1] % 32:
        writer.add_tensor(f"{theirs}.{leaf}", array)
        return
    type_ = getattr(gguf.GGMLQuantizationType, kind)
    writer.add_tensor(f"{theirs}.{leaf}", gguf.quants.quantize(array, type_), raw_dtype=type_)


def _sentencepiece(writer: Any, folder: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    sp = SentencePieceProcessor(str(folder / "native" / "tok512.model"))
    ids = range(sp.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([sp.id_to_piece(i) for i in ids])
    writer.add_token_scores([sp.get_score(i) for i in ids])
    kinds = ((6, sp.is_byte), (3, sp.is_control), (2, sp.is_unknown))
    writer.add_token_types([next((kind for kind, test in kinds if test(i)), 1) for i in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _byte_level(writer: Any, folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())
    vocab = model["model"]["vocab"] | {t["content"]: t["id"] for t in model["added_tokens"]}
    special = {t["content"] for t in model["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    config = json.loads((folder / "config.json").read_text())
    tokens += [f"<unused{i}>" for i in range(config["vocab_size"] - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special or t.startswith("<unused") else 1 for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["model"]["merges"]])
    writer.add_eos_token_id(7)


def dense(weight: Any) -> torch.Tensor:
    return weight.dense() if isinstance(weight, PackedMatrix) else weight


def _rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """What the gguf package makes of a weight that `write` stores in this type."""
    if kind == "F32" or weight.dim() < 2 or weight.shape[1] % 32:
        return weight
    type_ = getattr(gguf.GGMLQuantizationType, kind)
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), type_), type_))


@pytest.mark.parametrize("kind", sorted(OPENERS))
def test_blocks_open_as_in_the_gguf_package(kind: str) -> None:
    size = OPENERS[kind][0]
    raw = torch.randint(0, 256, (5, 3 * size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    blocks = raw.view(-1, size)
    at = {"Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(kind, (0,))
    for start in at:
        blocks[:, start : start + 2] = torch.rand(len(blocks), 1).half().view(torch.uint8)
    wanted = gguf.quants.dequantize(raw.numpy(), getattr(gguf.GGMLQuantizationType, kind))
    opened = open_blocks(raw, kind)
    torch.testing.assert_close(opened, torch.from_numpy(wanted), rtol=1e-6, atol=1e-6)
    assert (kind, opened.shape[1] // 3, size) in TYPES.values()
    assert Blocks(kind=kind).stored_bytes(5, opened.shape[1]) == raw.nbytes


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_are_the_dequantized_ones(tmp_path: Path, kind: str) -> None:
    folder = data("models/stories260K")
    ledger = Ledger(256 << 20)
    ours, plain = load_model(write(folder, tmp_path / "m.gguf", kind), ledger=ledger), load_model(folder)
    assert ledger.leased_by("weights") == ours.model.weight_bytes
    for name, stored in plain.model.weights().items():
        wanted = _rounded(dense(stored), kind)
        torch.testing.assert_close(dense(ours.model.weights()[name]), wanted, rtol=1e-6, atol=1e-8)
    assert ours.model.weights()["layers.0.attn.qkv.weight"].format.name == ("int4" if kind == "Q4_0" else "fp32")
    ours.close()
    assert ledger.leased_bytes == 0


@pytest.mark.parametrize("text", ["Once upon a time, there was a girl.", "héllo wörld 123", "Tom  and\nLily", " a", ""])
def test_sentencepiece_tokens(tmp_path: Path, text: str) -> None:
    folder = data("models/stories260K")
    ours, plain = load_model(write(folder, tmp_path / "m.gguf")).tokenizer, load_model(folder).tokenizer
    ids = plain.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == plain.decode(ids)


def test_golden_text_of_a_gguf_file(tmp_path: Path) -> None:
    folder = data("models/stories260K")
    wanted = json.loads((folder / "reference.json").read_text())
    write(folder, tmp_path / "m.gguf")
    with LLM(str(tmp_path), memory="2GiB") as llm, LLM(str(folder), memory="2GiB") as plain:
        params = SamplingParams(max_tokens=40, temperature=0)
        ours, theirs = (x.generate("Once upon a time", params)[0].token_ids for x in (llm, plain))
    assert ours == theirs
    golden = next(p for p in wanted["prompts"] if p["prompt"] == "Once upon a time")
    assert golden["greedy_60_ids"][:40] == ours


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_families_and_byte_level_tokens(tmp_path: Path, family: str, tied: bool) -> None:
    folder = fake_model.write(tmp_path / "m", model_type=family, tie_word_embeddings=tied, torch_dtype="bfloat16")
    ours, plain = load_model(write(folder, tmp_path / "x.gguf")), load_model(folder)
    for name, wanted in plain.model.weights().items():
        assert torch.equal(dense(ours.model.weights()[name]), dense(wanted))
    assert ours.tokenizer.encode("Hello, wörld 12!") == plain.tokenizer.encode("Hello, wörld 12!")
    assert ours.eos_ids == (7,)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
COUNTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
FACTORS = {"short_factor": [1.0, 1.25, 1.5], "long_factor": [1.0, 3.0, 8.0]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 18, "tie_word_embeddings": True}
WINDOW = {"attention__key_length": 16, "attention__sliding_window": 18}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_moe": (
        EXPERTS | {"shared_expert_intermediate_size": 64},
        COUNTS | {"expert_shared_feed_forward_length": 64},
    ),
    "qwen3_moe": (EXPERTS | {"norm_topk_prob": True, "head_dim": 16}, COUNTS | {"attention__key_length": 16}),
    "phi3": (
        {
            "partial_rotary_factor": 0.75, "sliding_window": 27, "original_max_position_embeddings": 32,
            "rope_scaling": FACTORS | {"rope_type": "longrope", "attention_factor": 1.5},
        },
        {
            "rope__dimension_count": 6, "attention__sliding_window": 27, "rope__scaling__attn_factor": 1.5,
            "rope__scaling__original_context_length": 32,
        },
    ),
    "gemma2": (
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        GEMMA | {
            "num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        WINDOW | {"rope__freq_base": 1e6, "rope__scaling__type": "linear", "rope__scaling__factor": 8.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", OTHERS)
def test_other_architectures(tmp_path: Path, family: str, kind: str) -> None:
    config, metadata = OTHERS[family]
    folder = fake_model.write(tmp_path / "m", model_type=family, rms_norm_eps=2.0**-20, **config)  # a float32 too
    arch = family.removesuffix("_text").replace("_", "")
    extra = {f"rope_factors_{n}.weight": torch.tensor(FACTORS[f"{n}_factor"]) for n in ("long", "short")}
    options = {f"{arch}__{key}": value for key, value in metadata.items()}
    file = write(folder, tmp_path / "x.gguf", kind, extra if family == "phi3" else None, **options)
    ours, plain = load_model(file), load_model(folder)
    assert ours.model.spec == plain.model.spec
    for name, stored in plain.model.weights().items():
        kept = ours.model.weights()[name]
        pairs = (
            [(kept, stored)] if not isinstance(stored, ExpertStack) else zip(kept.experts, stored.experts, strict=True)
        )
        for found, wanted in pairs:
            torch.testing.assert_close(dense(found), _rounded(dense(wanted), kind), rtol=1e-6, atol=1e-7)


def test_chat_template_and_other_formats(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    loaded = load_model(write(folder, tmp_path / "x.gguf", tokenizer__chat_template="{{ 1 + 1 }}"), quantization="int8")
    assert loaded.chat().render([{"role": "user", "content": "hi"}]) == "2"
    assert isinstance(loaded.model.weights()["embed.weight"], PackedMatrix)


def _cut(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])


def _patch(file: Path, at: int, raw: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[at : at + len(raw)] = raw
    file.write_bytes(content)


def test_llama3_rotary_factors_and_linear_scaling(tmp_path: Path) -> None:
    """Files of Llama 3.1 carry the divisors of the rotary pairs as a tensor."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 32}
    folder = fake_model.write(tmp_path / "m", rope_scaling=scaling)
    wanted = rope_of(load_model(folder))
    plain = inverse_frequencies(replace(wanted, kind="default"), 128)
    factors = plain / inverse_frequencies(wanted, 128)
    ours = rope_of(load_model(write(folder, tmp_path / "x.gguf", extra={"rope_freqs.weight": factors})))
    torch.testing.assert_close(inverse_frequencies(ours, 128), inverse_frequencies(wanted, 128))
    assert ours.attention_factor == 1.0
    options = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    scaled = rope_of(load_model(write(folder, tmp_path / "y.gguf", **options)))
    torch.testing.assert_close(inverse_frequencies(scaled, 128), plain / 4)


def rope_of(loaded: Any) -> Any:
    return loaded.model.spec.blocks[0].attn.rope


def parts(tmp_path: Path) -> list[Path]:
    """A tiny model in three files or more."""
    write(fake_model.write(tmp_path / "m"), tmp_path / "p" / "x.gguf", part_tensors=8)
    return sorted((tmp_path / "p").iterdir())


def test_a_model_in_parts(tmp_path: Path) -> None:
    files = parts(tmp_path)
    assert len(files) > 2
    assert files[0].name == f"x-00001-of-{len(files):05}.gguf"
    plain = load_model(tmp_path / "m")
    for path in (files[0], tmp_path / "p"):
        ours = load_model(path)
        for name, wanted in plain.model.weights().items():
            assert torch.equal(dense(ours.model.weights()[name]), dense(wanted))
    assert read_config(str(tmp_path / "p"))["tie_word_embeddings"] == plain.config["tie_word_embeddings"]


PARTS = {
    "missing": (lambda f: f[2].unlink(), r"-00003-of-0000\d.gguf: part 3 of \d is missing; download it"),
    "another's": (lambda f: f[2].write_bytes(f[1].read_bytes()), r"split.no and split.count are \(1, .*expected \(2"),
    "cut": (lambda f: _cut(f[1], f[1].stat().st_size - 40), r"-00002-of-.*truncated; tensor '.*' ends"),
    "renamed": (lambda f: f[0].rename(f[0].with_name("y.gguf")), r"y.gguf: split.count is \d, and the name should end"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_in_disorder_are_named(tmp_path: Path, name: str) -> None:
    files = parts(tmp_path)
    damage, words = PARTS[name]
    damage(files)
    ledger = Ledger(256 << 20)
    with pytest.raises(WeightsError, match=words):
        load_model(tmp_path / "p", ledger=ledger)
    assert ledger.leased_bytes == 0


def test_a_later_part_asks_for_the_first(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"one of \d parts; give the first, x-00001-of-"):
        load_model(parts(tmp_path)[1])


DAMAGE = {
    "empty": (lambda f: _cut(f, 0), "does not begin with GGUF"),
    "another kind": (lambda f: _patch(f, 0, b"ELF!"), "does not begin with GGUF"),
    "version": (lambda f: _patch(f, 4, struct.pack("<I", 9)), "GGUF version 9; accepted: 2, 3"),
    "counts": (lambda f: _patch(f, 8, struct.pack("<Q", 1 << 60)), "claims 1152921504606846976 tensors; damaged"),
    "header cut": (lambda f: _cut(f, 3000), "truncated in its header"),
    "data cut": (lambda f: _cut(f, f.stat().st_size - 100), r"tensor '.*' ends .* bytes after the end of the file"),
    "a length": (lambda f: _patch(f, 24, struct.pack("<Q", 1 << 50)), "a length of .* damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    file = write(fake_model.write(tmp_path / "m"), tmp_path / "x.gguf")
    damage, words = DAMAGE[name]
    damage(file)
    ledger = Ledger(256 << 20)
    with pytest.raises(WeightsError, match=words) as caught:
        load_model(file, ledger=ledger)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ledger.leased_bytes == 0


def test_refusals(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    scaled = write(folder, tmp_path / "x.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(UnsupportedModelError, match="rope.scaling.type 'yarn'; accepted: linear, none"):
        load_model(scaled)
    mixture = write(folder, tmp_path / "e" / "x.gguf", llama__expert_count=8)
    with pytest.raises(UnsupportedModelError, match="of mixtures of experts qwen2moe and qwen3moe are read"):
        load_model(mixture)
    phi = fake_model.write(tmp_path / "p", model_type="phi3")
    half = write(phi, tmp_path / "e" / "y.gguf", extra={"rope_factors_long.weight": torch.ones(4)})
    with pytest.raises(WeightsError, match="belong together, and one is missing"):
        load_model(half)
    write(folder, tmp_path / "y.gguf")
    with pytest.raises(PagodaError, match="several GGUF files"):
        load_model(tmp_path)
    name = b"general.architecture\x08\0\0\0\5\0\0\0\0\0\0\0"
    raw = (tmp_path / "y.gguf").read_bytes().replace(name + b"llama", name + b"mamba")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "z.gguf").write_bytes(raw)
    with pytest.raises(UnsupportedModelError, match="'mamba'; accepted: gemma2, gemma3, llama, phi3, qwen2, "):
        load_model(tmp_path / "z")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_a_plan_states_the_bytes_of_the_file(tmp_path: Path, kind: str) -> None:
    """Formats, dtype and what streaming reads are those of loading it; no weight is read."""
    folder = fake_model.write(tmp_path / "m", hidden_size=64, intermediate_size=128)
    file = write(folder, tmp_path / "m.gguf", kind)
    subject = Subject.of(str(file), read_config(str(file)), folder=folder_of(str(file)))
    loaded = load_model(file, weights="stream" if subject.panels else "auto")
    packing = subject.quantization("auto")
    assert subject.dtype == loaded.dtype
    assert subject.shape.weight_bytes(subject.dtype, packing) == loaded.shape.weight_bytes(
        loaded.dtype, loaded.quantization
    )
    if loaded.stream is not None:
        assert plan_stream(subject.shape, subject.dtype, packing, 0, subject.on_disk) == loaded.stream
    loaded.close()


def test_a_file_is_not_quantized_anew(tmp_path: Path) -> None:
    """By no method that has the whole model, either (`test_quantize_tensors` has the others)."""
    loaded = load_model(write(fake_model.write(tmp_path / "m"), tmp_path / "m.gguf", "F16"), quantization="none")
    with pytest.raises(ModelError, match=r"m\.gguf: a GGUF file is packed already; quantize its checkpoint"):
        quantize_model(loaded, tmp_path / "q", parse_quantization("int8"), method="gptq", calibration=[[5, 6]])
    assert not (tmp_path / "q").exists()
    loaded.close()
