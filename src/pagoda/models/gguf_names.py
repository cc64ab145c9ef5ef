"""A GGUF file's tensors by the names of the Hugging Face form; stacked experts become tensors of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pagoda.core.errors import WeightsError
from pagoda.weights.gguf_header import GGUFTensor

ARCHITECTURES = {
    "gemma2": "gemma2", "gemma3": "gemma3_text", "llama": "llama", "phi3": "phi3", "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe", "qwen3": "qwen3", "qwen3moe": "qwen3_moe",
}  # fmt: skip
"""general.architecture -> model_type."""
GEMMAS = ("gemma2", "gemma3")
"""Their norms multiply by 1 and the weight; llama.cpp's converter adds the 1 to the weight."""
MIXTURES = ("qwen2moe", "qwen3moe")
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_SHARED = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_AROUND = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_STACKED = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_OF = {"phi3": _FUSED} | dict.fromkeys(MIXTURES, _SHARED) | dict.fromkeys(GEMMAS, _AROUND)
ROUTER, SHARED_GATE = "ffn_gate_inp", "ffn_gate_inp_shexp"


def part_of(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``attn_q``, ``blk.3.ffn_up_exps.7.weight`` -> ``ffn_up_exps``; else nothing."""
    pieces = name.split(".")
    return pieces[2] if pieces[0] == "blk" and len(pieces) > 3 else ""


def hugging_face_name(architecture: str, name: str) -> str:
    """The name that the model knows; the file's own where it is none of ours."""
    part, _, leaf = name.rpartition(".")
    if part in OUTSIDE:
        return f"{OUTSIDE[part]}.{leaf}"
    found = _LAYER | _OF.get(architecture, {})
    pieces = part.split(".")
    if pieces[0] == "blk" and len(pieces) == 3 and pieces[2] in found:
        return f"model.layers.{pieces[1]}.{found[pieces[2]]}.{leaf}"
    if pieces[0] == "blk" and len(pieces) == 4 and pieces[2] in _STACKED:
        return f"model.layers.{pieces[1]}.mlp.experts.{pieces[3]}.{_STACKED[pieces[2]]}.{leaf}"
    return name


def by_expert(tensors: Mapping[str, GGUFTensor]) -> dict[str, GGUFTensor]:
    """The same, with ``blk.0.ffn_up_exps.weight`` ``[experts, rows, cols]`` as ``blk.0.ffn_up_exps.0.weight``, …

    Raises WeightsError for a stack of another form.
    """
    found: dict[str, GGUFTensor] = {}
    for name, tensor in tensors.items():
        if part_of(name) not in _STACKED:
            found[name] = tensor
            continue
        if len(tensor.shape) != 3:
            raise WeightsError(f"{tensor.entry.file}: tensor {name!r} has shape {list(tensor.shape)}; expected a stack")
        part, _, leaf = name.rpartition(".")
        for expert in range(tensor.shape[0]):
            own = f"{part}.{expert}.{leaf}"
            entry = replace(tensor.entry.rows(expert, expert + 1), name=own, shape=tensor.entry.shape[1:])
            found[own] = GGUFTensor(tensor.shape[1:], tensor.kind, entry)
    return found
