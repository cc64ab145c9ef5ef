"""The parameter table: name and shape of every tensor that a decoder holds, straight from its spec (no torch).

Projections that read the same input are one tensor (q, k, v; gate and up), because at decode a layer's time is
mostly its number of matrix-vector calls and the bytes they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pagoda.weights.quantization import Role

from .spec import AttentionSpec, BlockSpec, DecoderSpec, LatentSpec, MLPSpec, MoESpec, NormSpec


@dataclass(frozen=True, slots=True)
class Param:
    """Shape of one tensor; ``float32`` ones keep that type whatever the model's dtype.

    ``role`` says what a weight format may do with it: all but ``plain`` are matrices (``experts`` a stack of them).
    """

    shape: tuple[int, ...]
    float32: bool = False
    role: Role = "plain"

    @property
    def count(self) -> int:
        return prod(self.shape)


Table = dict[str, Param]

NUM_NORMS = {"pre": 2, "sandwich": 4, "post": 2, "post_residual": 2, "parallel": 1, "parallel_two": 2}


def parameters(spec: DecoderSpec) -> Table:
    """Every parameter of the model by our name, in the order of computation."""
    table: Table = {"embed.weight": Param((spec.vocab_size, spec.embed_size), role="embed")}
    if spec.num_positions:
        table["positions.weight"] = Param((spec.num_positions, spec.hidden_size))
    if spec.projected:
        table["project_in.weight"] = Param((spec.hidden_size, spec.embed_size), role="linear")
    for i, block in enumerate(spec.blocks):
        _block(table, f"layers.{i}.", block, spec.hidden_size)
    if spec.final_norm is not None:
        _norm(table, "norm", spec.final_norm, (spec.hidden_size,))
    if spec.projected:
        table["project_out.weight"] = Param((spec.embed_size, spec.hidden_size), role="linear")
    if not spec.tied:
        table["lm_head.weight"] = Param((spec.vocab_size, spec.embed_size), role="embed")
    if spec.lm_head_bias:
        table["lm_head.bias"] = Param((spec.vocab_size,))
    return table


def _block(table: Table, prefix: str, block: BlockSpec, hidden: int) -> None:
    for n in range(NUM_NORMS[block.placement]):
        _norm(table, f"{prefix}norm{n + 1}", block.norm, (hidden,))
    if isinstance(block.attn, LatentSpec):
        _latent(table, f"{prefix}attn.", block.attn, hidden)
    else:
        _attention(table, f"{prefix}attn.", block.attn, hidden)
    if isinstance(block.mlp, MoESpec):
        _moe(table, f"{prefix}mlp.", block.mlp, hidden)
    else:
        _mlp(table, f"{prefix}mlp.", block.mlp, hidden)


def _norm(table: Table, name: str, norm: NormSpec, shape: tuple[int, ...]) -> None:
    if norm.affine:
        table[f"{name}.weight"] = Param(shape)
    if norm.bias:
        table[f"{name}.bias"] = Param(shape)


def _linear(table: Table, name: str, out_size: int, in_size: int, bias: bool, role: Role = "linear") -> None:
    table[f"{name}.weight"] = Param((out_size, in_size), role=role)
    if bias:
        table[f"{name}.bias"] = Param((out_size,))


def _attention(table: Table, prefix: str, a: AttentionSpec, hidden: int) -> None:
    _linear(table, f"{prefix}qkv", a.q_size + 2 * a.kv_size, hidden, a.bias)
    if a.qk_norm is not None:
        for name, heads in (("q_norm", a.num_heads), ("k_norm", a.num_kv_heads)):
            shapes = {"head": (a.head_dim,), "each": (heads, a.head_dim), "all": (heads * a.head_dim,)}
            _norm(table, prefix + name, a.qk_norm, shapes[a.qk_norm_over])
    if a.sinks:
        table[f"{prefix}sinks"] = Param((a.num_heads,))
    if a.out_norm is not None:
        _norm(table, f"{prefix}out_norm", a.out_norm, (a.q_size,))
    _linear(table, f"{prefix}out", hidden, a.q_size, a.out_bias)


def _latent(table: Table, prefix: str, a: LatentSpec, hidden: int) -> None:
    q_size = a.num_heads * a.head_dim
    _linear(table, f"{prefix}down", (a.q_rank or q_size) + a.latent_dim, hidden, a.bias)
    if a.q_rank:
        _norm(table, f"{prefix}q_norm", a.norm, (a.q_rank,))
        _linear(table, f"{prefix}q_up", q_size, a.q_rank, False)
    _norm(table, f"{prefix}kv_norm", a.norm, (a.kv_rank,))
    table[f"{prefix}k_up"] = Param((a.num_heads, a.nope_dim, a.kv_rank))
    table[f"{prefix}v_up"] = Param((a.num_heads, a.v_dim, a.kv_rank))
    _linear(table, f"{prefix}out", hidden, a.num_heads * a.v_dim, a.bias)


def _mlp(table: Table, prefix: str, m: MLPSpec, hidden: int) -> None:
    _linear(table, f"{prefix}gate_up" if m.gated else f"{prefix}up", m.inner * (2 if m.gated else 1), hidden, m.bias)
    if m.inner_norm is not None:
        _norm(table, f"{prefix}inner_norm", m.inner_norm, (m.inner,))
    _linear(table, f"{prefix}down", hidden, m.inner, m.bias)


def _moe(table: Table, prefix: str, m: MoESpec, hidden: int) -> None:
    _linear(table, f"{prefix}router", m.num_experts, hidden, m.router.bias, role="plain")  # small, and decides much
    if m.router.kind == "sigmoid":
        table[f"{prefix}correction_bias"] = Param((m.num_experts,), float32=True)
    table[f"{prefix}gate_up"] = Param((m.num_experts, 2 * m.inner, hidden), role="experts")
    table[f"{prefix}experts_down"] = Param((m.num_experts, hidden, m.inner), role="experts")
    if m.bias:
        table[f"{prefix}gate_up_bias"] = Param((m.num_experts, 2 * m.inner))
        table[f"{prefix}experts_down_bias"] = Param((m.num_experts, hidden))
    if m.shared is not None:
        _mlp(table, f"{prefix}shared.", m.shared, hidden)
    if m.shared_gate:
        _linear(table, f"{prefix}shared_router", 1, hidden, False, role="plain")
