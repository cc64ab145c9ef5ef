"""What a family calls its tensors: templates that `sources` expands into one entry per checkpoint tensor.

Module names come without ``.weight`` / ``.bias``; names inside a layer are relative to ``layer``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

QKVLayout = Literal["split", "stacked", "per_head", "per_group"]
"""How q, k and v lie in the checkpoint.

split      three tensors (``q``, ``k``, ``v``)
stacked    one tensor ``qkv``: all q rows, then k rows, then v rows
per_head   one tensor: for every head its q, k and v rows (GPT-NeoX)
per_group  one tensor: for every kv-head the q rows of its group, then its k and v rows (Falcon)
"""


@dataclass(frozen=True, slots=True)
class Names:
    """Llama's names; a family states what differs.

    ``expert`` is the prefix of one expert's three tensors in a checkpoint; ``experts`` the prefix of the stacked
    tensors, which are accepted as well (``[E, 2I, H]`` and ``[E, H, I]``; ``experts_interleaved`` is gpt_oss's
    ``[E, H, 2I]`` with gate and up in alternating columns, and has no per-expert form).
    ``conv1d`` weights are stored ``[in, out]`` (GPT-2). ``renames`` are (from, to) prefixes tried in order;
    ``ignored`` are regular expressions over whole names. ``optional_prefix`` may be absent from every name.
    """

    embed: str = "model.embed_tokens"
    positions: str = ""
    project_in: str = ""
    project_out: str = ""
    layer: str = "model.layers.{i}."
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    lm_head_aliases: tuple[str, ...] = ()

    norm1: str = "input_layernorm"
    norm2: str = "post_attention_layernorm"
    norm3: str = ""
    norm4: str = ""

    qkv_layout: QKVLayout = "split"
    qkv: str = ""
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    out_norm: str = "self_attn.attn_sub_norm"
    sinks: str = "self_attn.sinks"

    q_down: str = "self_attn.q_a_proj"
    q_down_norm: str = "self_attn.q_a_layernorm"
    q_up: str = "self_attn.q_b_proj"
    kv_down: str = "self_attn.kv_a_proj_with_mqa"
    kv_down_norm: str = "self_attn.kv_a_layernorm"
    kv_up: str = "self_attn.kv_b_proj"

    gate_up: str = ""
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    inner_norm: str = "mlp.ffn_sub_norm"

    router: str = "mlp.gate"
    router_aliases: tuple[str, ...] = ()
    correction_bias: str = "mlp.gate.e_score_correction_bias"
    experts: str = "mlp.experts."
    expert: str = "mlp.experts.{e}."
    expert_gate: str = "gate_proj"
    expert_up: str = "up_proj"
    expert_down: str = "down_proj"
    experts_interleaved: bool = False
    shared_gate: str = "mlp.shared_expert.gate_proj"
    shared_up: str = "mlp.shared_expert.up_proj"
    shared_down: str = "mlp.shared_expert.down_proj"
    shared_router: str = "mlp.shared_expert_gate"

    conv1d: bool = False
    optional_prefix: str = "model."
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)

    @property
    def rearranged(self) -> bool:
        """Whether the layers' matrices, or its experts, lie otherwise than they are multiplied."""
        return self.conv1d or self.experts_interleaved

    def ignoring(self, *rules: str) -> Names:
        """The same names with more regular expressions to ignore."""
        return replace(self, ignored=(*self.ignored, *rules))
