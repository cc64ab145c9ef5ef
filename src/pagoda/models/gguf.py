"""A model in GGUF files: config, tokenizer and weights out of its metadata and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

from .gguf_names import ARCHITECTURES, GEMMAS, MIXTURES, ROUTER, SHARED_GATE, by_expert, hugging_face_name, part_of
from .gguf_tokenizer import read_tokenizer
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from pagoda.weights.packed import CodedMatrix

ROPE_FACTORS = "rope_freqs.weight"
GEMMA_27B = (46, 62)  # layers
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


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
    template = header.metadata.get("tokenizer.chat_template")
    templates = {"default": template} if isinstance(template, str) else {}
    return GGUFModel(config, source_of(header, config), read_tokenizer(header), templates)


def source_of(header: GGUFHeader, config: Mapping[str, Any]) -> TensorSource:
    """The file's tensors by the names of the Hugging Face form. ``config``: what `config_of` made of the header."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    rotated = heads if config["model_type"] == "llama" else {}
    tensors = {
        n: t for n, t in by_expert(header.tensors).items() if n not in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
    }
    architecture = header.metadata["general.architecture"]
    shifted = architecture in GEMMAS
    logical = {hugging_face_name(architecture, n): _logical(n, t, rotated, shifted) for n, t in tensors.items()}
    return TensorSource(Checkpoint(header.file.parent, {n: t.entry for n, t in tensors.items()}), logical)


def config_of(header: GGUFHeader) -> dict[str, Any]:
    """The metadata as a Hugging Face config."""
    meta, file = header.metadata, header.file
    family = meta.get("general.architecture")
    if family not in ARCHITECTURES:
        raise UnsupportedModelError(f"{file}: {choices('architecture of a GGUF file', family, ARCHITECTURES)}")

    def key(name: str, kind: type, default: Any = None) -> Any:
        value = meta.get(f"{family}.{name}", default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise WeightsError(f"{file}: {family}.{name} is {value!r}; expected {kind.__name__}")
        return value

    if key("expert_count", int, 0) and family not in MIXTURES:
        raise UnsupportedModelError(
            f"{file}: of mixtures of experts {' and '.join(MIXTURES)} are read from GGUF; use the safetensors form"
        )
    hidden, heads = key("embedding_length", int), key("attention.head_count", int)
    embed = header.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise WeightsError(f"{file}: tensor 'token_embd.weight' is missing, or no matrix")
    config = {
        "model_type": ARCHITECTURES[family],
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
    if family == "phi3":
        return config | _phi3(header, key, config)
    if scaling := _rope_scaling(header, family, config["max_position_embeddings"]):
        config["rope_scaling"] = scaling
    if family in GEMMAS:
        return config | _gemma(header, key, config)
    if family in MIXTURES:
        config |= _mixture(header, key, config["num_hidden_layers"])
    biased = any(name.endswith("attn_q.bias") for name in header.tensors)
    return config if family.startswith("qwen2") else config | {"attention_bias": biased}


def _mixture(header: GGUFHeader, key: Callable[..., Any], num_layers: int) -> dict[str, Any]:
    """What the config says of experts. Whether a router's choice sums to 1 is the architecture's, in llama.cpp too."""
    family = header.metadata["general.architecture"]
    found = {
        "num_experts": key("expert_count", int),
        "num_experts_per_tok": key("expert_used_count", int),
        "moe_intermediate_size": key("expert_feed_forward_length", int),
        "norm_topk_prob": family == "qwen3moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(num_layers) if f"blk.{i}.{ROUTER}.weight" not in header.tensors],
    }
    if family == "qwen2moe":
        found["shared_expert_intermediate_size"] = key("expert_shared_feed_forward_length", int)
    return found


def _phi3(header: GGUFHeader, key: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Partial rotary positions, the window, and LongRoPE's two lists of factors, which are tensors."""
    original = key("rope.scaling.original_context_length", int, config["max_position_embeddings"])
    found: dict[str, Any] = {
        "partial_rotary_factor": key("rope.dimension_count", int, config["head_dim"]) / config["head_dim"],
        "sliding_window": key("attention.sliding_window", int, 0) or None,
        "original_max_position_embeddings": original,
    }
    kind, factors = key("rope.scaling.type", str, "none"), {LONG_FACTORS, SHORT_FACTORS}.intersection(header.tensors)
    if kind not in ("none", "longrope"):
        raise UnsupportedModelError(f"{header.file}: {choices('rope.scaling.type', kind, ('none', 'longrope'))}")
    if len(factors) == 1:
        raise WeightsError(f"{header.file}: {LONG_FACTORS} and {SHORT_FACTORS} belong together, and one is missing")
    if factors:
        found["rope_scaling"] = {
            "rope_type": "longrope", "attention_factor": key("rope.scaling.attn_factor", float, 1.0),
            "long_factor": _factors(header, LONG_FACTORS), "short_factor": _factors(header, SHORT_FACTORS),
        }  # fmt: skip
    return found


def _gemma(header: GGUFHeader, key: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Windows, soft caps, and what the file does not say and llama.cpp knows: the scale of the two models of 27B."""
    per_head = config["hidden_size"] // config["num_attention_heads"]
    found: dict[str, Any] = {
        "query_pre_attn_scalar": per_head if config["num_hidden_layers"] in GEMMA_27B else config["head_dim"],
        "sliding_window": key("attention.sliding_window", int),
    }
    if header.metadata["general.architecture"] == "gemma3":
        return found | {"rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        found[cap] = key(cap, float, 0.0) or None
    return found


def _factors(header: GGUFHeader, name: str) -> list[float]:
    """A divisor for every rotary pair."""
    found: list[float] = Checkpoint(header.file.parent, {name: header.tensors[name].entry}).read(name).float().tolist()
    return found


def _ends(meta: Mapping[str, Any]) -> list[int] | None:
    """End of text and, where the file names one, end of turn: llama.cpp stops at both."""
    found = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return [i for i in dict.fromkeys(found) if isinstance(i, int)] or None


def _rope_scaling(header: GGUFHeader, family: str, max_position: int) -> dict[str, Any] | None:
    """Llama 3.1 files bring the divisor of every rotary pair as a tensor; other scalings stand in the metadata."""
    kind = header.metadata.get(f"{family}.rope.scaling.type", "none")
    if ROPE_FACTORS in header.tensors:
        factors = _factors(header, ROPE_FACTORS)
        return {
            "rope_type": "longrope", "attention_factor": 1.0, "short_factor": factors, "long_factor": factors,
            "original_max_position_embeddings": max_position,
        }  # fmt: skip
    if kind == "linear":
        return {"rope_type": "linear", "factor": header.metadata.get(f"{family}.rope.scaling.factor")}
    if kind != "none":
        raise UnsupportedModelError(f"{header.file}: {choices('rope.scaling.type', kind, ('none', 'linear'))}")
    return None


def _logical(name: str, tensor: GGUFTensor, rotated: Mapping[str, int], shifted: bool) -> Logical:
    part = part_of(name)
    if shifted and name.endswith("norm.weight"):
        return Logical((name,), tensor.shape, lambda t: t[name] - 1, None, tensor.entry.num_bytes)
    heads = rotated.get(part, 0)
    if heads and tensor.shape[0] % (2 * heads):
        raise WeightsError(
            f"{tensor.entry.file}: tensor {name!r} has {tensor.shape[0]} rows, which {heads} heads cannot share"
        )
    exact = tensor.kind == "Q4_0" and len(tensor.shape) == 2
    format = Int4(group=32, symmetric=True, scale="float32", embed="none") if exact else None
    made = 2 * tensor.entry.num_bytes if heads or exact else 0
    made += BLOCK_ELEMS * SCRATCH_BYTES if tensor.entry.dtype == "U8" else 0
    rows = name if not heads and tensor.entry.dtype != "U8" else None
    if part == SHARED_GATE and len(tensor.shape) == 1:  # a matrix of one row, which llama.cpp has as a vector
        return Logical(
            (name,), (1, tensor.shape[-1]), lambda t: _build(t[name], tensor, 1, None).reshape(1, -1), None, made
        )
    head_rows = tensor.shape[0] // heads if heads else 1
    return Logical(
        (name,), tensor.shape, lambda t: _build(t[name], tensor, head_rows, format), format, made, rows, by_rows=True,
        row_step=head_rows,
    )  # fmt: skip


def _build(stored: Tensor, tensor: GGUFTensor, head_rows: int, format: Int4 | None) -> Tensor | CodedMatrix:
    """Of whole heads of so many rows, where their halves are to be put in order (1: they are)."""
    import torch

    from pagoda.weights.packed import CodedMatrix

    rows = stored[_half_split(len(stored), head_rows)] if head_rows > 1 else stored
    if tensor.entry.dtype != "U8":
        return rows
    if format is not None:
        return CodedMatrix(format, int4_codes(rows), tensor.shape[-1], torch.float32)
    blocks = CodedMatrix(Blocks(kind=tensor.kind), {"blocks": rows}, tensor.shape[-1], torch.float32)
    return blocks if rows.dim() == 2 else blocks.dense().reshape(tensor.shape)


def _half_split(rows: int, head_rows: int) -> Tensor:
    """llama.cpp has the two halves of each head's rotary pairs side by side; here one half follows the other."""
    import torch

    return torch.arange(rows).view(-1, head_rows // 2, 2).transpose(1, 2).reshape(-1)
