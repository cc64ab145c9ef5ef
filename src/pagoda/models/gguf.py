"""A model in GGUF files: config, tokenizer and weights out of its metadata (llama, qwen2 and qwen3 families)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagoda.core.errors import UnsupportedModelError, WeightsError, choices
from pagoda.weights.formats.base import BLOCK_ELEMS, SCRATCH_BYTES
from pagoda.weights.formats.int4 import Int4
from pagoda.weights.gguf_blocks import Blocks, int4_codes
from pagoda.weights.gguf_header import GGUFHeader, GGUFTensor
from pagoda.weights.gguf_parts import read_parts
from pagoda.weights.reader import Checkpoint
from pagoda.weights.schemes.base import Logical
from pagoda.weights.source import TensorSource

from .gguf_tokenizer import read_tokenizer
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from pagoda.weights.packed import CodedMatrix

FAMILIES = ("llama", "qwen2", "qwen3")
ROPE_FACTORS = "rope_freqs.weight"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFModel:
    """What a folder would say: config.json, weights, tokenizer, chat templates."""

    config: dict[str, Any]
    source: TensorSource
    tokenizer: Tokenizer
    chat_templates: dict[str, str]


def open_gguf(file: Path) -> GGUFModel:
    """Raises WeightsError for damage, UnsupportedModelError for what is not read, each naming the file."""
    header = read_parts(file)
    config = config_of(header)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    rotated = heads if config["model_type"] == "llama" else {}
    logical = dict(_logical(n, t, rotated) for n, t in header.tensors.items() if n != ROPE_FACTORS)
    checkpoint = Checkpoint(file.parent, {name: tensor.entry for name, tensor in header.tensors.items()})
    template = header.metadata.get("tokenizer.chat_template")
    templates = {"default": template} if isinstance(template, str) else {}
    return GGUFModel(config, TensorSource(checkpoint, logical), read_tokenizer(header), templates)


def config_of(header: GGUFHeader) -> dict[str, Any]:
    """The metadata as a Hugging Face config."""
    meta, file = header.metadata, header.file
    family = meta.get("general.architecture")
    if family not in FAMILIES:
        raise UnsupportedModelError(f"{file}: {choices('architecture of a GGUF file', family, FAMILIES)}")

    def key(name: str, kind: type, default: Any = None) -> Any:
        value = meta.get(f"{family}.{name}", default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise WeightsError(f"{file}: {family}.{name} is {value!r}; expected {kind.__name__}")
        return value

    if key("expert_count", int, 0):
        raise UnsupportedModelError(f"{file}: mixtures of experts are not read from GGUF; use the safetensors form")
    hidden, heads = key("embedding_length", int), key("attention.head_count", int)
    embed = header.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise WeightsError(f"{file}: tensor 'token_embd.weight' is missing, or no matrix")
    config = {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": key("feed_forward_length", int),
        "num_hidden_layers": key("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": key("attention.head_count_kv", int, heads),
        "head_dim": key("attention.key_length", int, hidden // max(1, heads)),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon", float),
        "rope_theta": key("rope.freq_base", float, 10000.0),
        "max_position_embeddings": key("context_length", int),
        "vocab_size": embed.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(meta),
    }
    if embed.entry.dtype == "U8":  # blocks are opened; norms in float32 do not speak for them
        config["torch_dtype"] = "bfloat16"
    if scaling := _rope_scaling(header, family, config["max_position_embeddings"]):
        config["rope_scaling"] = scaling
    biased = any(name.endswith("attn_q.bias") for name in header.tensors)
    return config if family == "qwen2" else config | {"attention_bias": biased}


def _ends(meta: Mapping[str, Any]) -> list[int] | None:
    """End of text and, where the file names one, end of turn: llama.cpp stops at both."""
    found = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return [i for i in dict.fromkeys(found) if isinstance(i, int)] or None


def _rope_scaling(header: GGUFHeader, family: str, max_position: int) -> dict[str, Any] | None:
    """Llama 3.1 files bring the divisor of every rotary pair as a tensor; other scalings stand in the metadata."""
    kind = header.metadata.get(f"{family}.rope.scaling.type", "none")
    if ROPE_FACTORS in header.tensors:
        stored = header.tensors[ROPE_FACTORS].entry
        factors = Checkpoint(header.file.parent, {ROPE_FACTORS: stored}).read(ROPE_FACTORS).float().tolist()
        return {
            "rope_type": "longrope", "attention_factor": 1.0, "short_factor": factors, "long_factor": factors,
            "original_max_position_embeddings": max_position,
        }  # fmt: skip
    if kind == "linear":
        return {"rope_type": "linear", "factor": header.metadata.get(f"{family}.rope.scaling.factor")}
    if kind != "none":
        raise UnsupportedModelError(f"{header.file}: {choices('rope.scaling.type', kind, ('none', 'linear'))}")
    return None


def _logical(name: str, tensor: GGUFTensor, rotated: Mapping[str, int]) -> tuple[str, Logical]:
    part, _, leaf = name.rpartition(".")
    pieces = part.split(".")
    if pieces[0] == "blk" and len(pieces) == 3 and pieces[2] in _LAYER:
        ours, heads = f"model.layers.{pieces[1]}.{_LAYER[pieces[2]]}.{leaf}", rotated.get(pieces[2], 0)
    else:
        ours, heads = f"{_OUTSIDE[part]}.{leaf}" if part in _OUTSIDE else name, 0
    if heads and tensor.shape[0] % (2 * heads):
        raise WeightsError(
            f"{tensor.entry.file}: tensor {name!r} has {tensor.shape[0]} rows, which {heads} heads cannot share"
        )
    exact = tensor.kind == "Q4_0" and len(tensor.shape) == 2
    format = Int4(group=32, symmetric=True, scale="float32", embed="none") if exact else None
    made = 2 * tensor.entry.num_bytes if heads or exact else 0
    made += BLOCK_ELEMS * SCRATCH_BYTES if tensor.entry.dtype == "U8" else 0
    rows = name if not heads and tensor.entry.dtype != "U8" else None
    return ours, Logical(
        (name,), tensor.shape, lambda t: _build(t[name], tensor, heads, format), format, made, rows, by_rows=not heads
    )


def _build(stored: Tensor, tensor: GGUFTensor, heads: int, format: Int4 | None) -> Tensor | CodedMatrix:
    import torch

    from pagoda.weights.packed import CodedMatrix

    rows = stored[_half_split(len(stored), heads)] if heads else stored
    if tensor.entry.dtype != "U8":
        return rows
    if format is not None:
        return CodedMatrix(format, int4_codes(rows), tensor.shape[-1], torch.float32)
    blocks = CodedMatrix(Blocks(kind=tensor.kind), {"blocks": rows}, tensor.shape[-1], torch.float32)
    return blocks if rows.dim() == 2 else blocks.dense().reshape(tensor.shape)


def _half_split(rows: int, heads: int) -> Tensor:
    """llama.cpp has the two halves of each head's rotary pairs side by side; here one half follows the other."""
    import torch

    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
