"""What a decoder is made of, as frozen data: the one description that shapes, weights and layers are all built from.

A family file reads a `DecoderSpec` out of a Hugging Face config; nothing after that looks at the config again.
No torch here: the planner reads shapes from the same specs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .names import Names


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMSNorm or LayerNorm. ``offset`` is added to the weight (Gemma stores w - 1).

    ``fp32_weight``: RMSNorm rounds to the model's dtype after the weight, not before it (OLMo 2, gpt_oss).
    """

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    fp32_weight: bool = False
    bias: bool = False
    affine: bool = True


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding over the first ``dim`` elements of a head, with every default already resolved.

    ``kind`` is one of default, linear, dynamic, yarn, longrope, llama3 (`layers/rotary.py` has the formulas).
    ``max_position`` is the config's ``max_position_embeddings``; ``original_max_position`` the pre-training length.
    ``float32``: the rotation is computed in float32 in a model of a narrower dtype (Cohere).
    """

    kind: str
    theta: float
    dim: int
    max_position: int
    interleaved: bool = False
    float32: bool = False
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention.

    ``window`` 0 is full attention. ``qk_norm_over`` says what one normalization covers: each head with one weight
    for all (``head``), each head with its own weight (``each``), or the whole projection (``all``).
    ``out_norm`` sits before the output projection. ``clip`` bounds q, k and v to [-clip, clip],
    after such a norm over the whole projection.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    bias: bool = False
    out_bias: bool = False
    window: int = 0
    soft_cap: float = 0.0
    rope: RopeSpec | None = None
    qk_norm: NormSpec | None = None
    qk_norm_over: Literal["head", "each", "all"] = "head"
    sinks: bool = False
    alibi_slopes: tuple[float, ...] = ()
    clip: float = 0.0
    out_norm: NormSpec | None = None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434), with the up-projections absorbed.

    A slot holds one vector of ``kv_rank + rope_dim``: the normalized latent and the shared rotary key.
    ``q_rank`` 0 means that queries come from one projection.
    """

    num_heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float
    norm: NormSpec
    rope: RopeSpec
    bias: bool = False
    window: int = 0

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """Feed-forward: ``down(act(gate) * up)`` when gated, else ``down(act(up))``. ``inner_norm`` sits before down."""

    inner: int
    act: str
    gated: bool = True
    bias: bool = False
    inner_norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """How a token picks its experts.

    ``softmax``       softmax over all experts, then the top k; renormalized when ``normalize``.
    ``topk_softmax``  the top k logits, then softmax over them (gpt_oss).
    ``sigmoid``       sigmoid scores, picked with a correction bias inside the best ``topk_group`` of ``num_groups``
                      groups, renormalized when ``normalize``, times ``scaling`` (DeepSeek-V3).
    """

    kind: Literal["softmax", "topk_softmax", "sigmoid"]
    top_k: int
    normalize: bool = False
    bias: bool = False
    scaling: float = 1.0
    num_groups: int = 1
    topk_group: int = 1


@dataclass(frozen=True, slots=True)
class MoESpec:
    """A sparse feed-forward: ``num_experts`` gated MLPs of width ``inner``, a router, perhaps a shared expert.

    ``act`` may be ``swiglu_oai`` (clamped, with ``alpha`` and ``limit``). ``shared_gate`` scales the shared expert
    by a sigmoid of its own projection (Qwen2-MoE).
    """

    num_experts: int
    inner: int
    act: str
    router: RouterSpec
    bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0
    shared: MLPSpec | None = None
    shared_gate: bool = False


Placement = Literal["pre", "sandwich", "post", "post_residual", "parallel", "parallel_two"]
"""Where a block's norms stand (n1.. in reading order):

pre            x += attn(n1(x));      x += mlp(n2(x))
sandwich       x += n2(attn(n1(x)));  x += n4(mlp(n3(x)))
post           x += n1(attn(x));      x += n2(mlp(x))
post_residual  x = n1(x + attn(x));   x = n2(x + mlp(x))
parallel       x += attn(n1(x)) + mlp(n1(x))
parallel_two   x += attn(n1(x)) + mlp(n2(x))
"""


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One decoder layer. ``residual_scale`` multiplies both branches before they are added (Granite)."""

    attn: AttentionSpec | LatentSpec
    mlp: MLPSpec | MoESpec
    norm: NormSpec
    placement: Placement = "pre"
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A whole decoder-only model.

    ``embed_dim`` differs from ``hidden_size`` only where a projection stands between them (OPT-350m).
    ``num_positions`` > 0 is a learned position table; a token at position p reads row p + ``position_offset``.
    Logits are ``soft_cap(logit_scale * lm_head(x))``.
    """

    family: str
    vocab_size: int
    hidden_size: int
    blocks: tuple[BlockSpec, ...]
    final_norm: NormSpec | None
    max_position: int
    tied: bool
    names: Names = field(default_factory=Names)
    embed_dim: int = 0
    embed_scale: float = 1.0
    num_positions: int = 0
    position_offset: int = 0
    lm_head_bias: bool = False
    logit_scale: float = 1.0
    logit_soft_cap: float = 0.0

    @property
    def embed_size(self) -> int:
        return self.embed_dim or self.hidden_size

    @property
    def windows(self) -> tuple[int, ...]:
        """Of each layer's attention; 0: none."""
        return tuple(block.attn.window for block in self.blocks)

    @property
    def scales_alike(self) -> bool:
        """Whether products of queries and keys are scaled by one number in all layers."""
        return len({block.attn.scale for block in self.blocks}) == 1

    @property
    def alibi(self) -> bool:
        """Whether any layer measures distance by ALiBi."""
        return any(getattr(block.attn, "alibi_slopes", ()) for block in self.blocks)

    @property
    def projected(self) -> bool:
        """Whether embeddings are projected into and out of the hidden size."""
        return self.embed_size != self.hidden_size
