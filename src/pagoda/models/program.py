"""A decoder written as one `kernels.program.Program`, for steps that run without Python between their kernels.

`Block` in `decoder.py` is the same thing op by op: it serves where the program cannot (see `why_not`), and the tests
hold the two equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pagoda.kernels import dispatch
from pagoda.kernels.ops.rms_norm import rounds_first
from pagoda.weights.expert_cache import CachedExperts
from pagoda.weights.packed import ExpertStack, PackedMatrix, PanelMatrix

from .layers.attention import Attention
from .layers.latent import LatentAttention
from .layers.linear import EachHeadNorm, Linear, Norm
from .layers.mlp import MLP
from .layers.moe import MoE
from .spec import AttentionSpec, LatentSpec, MLPSpec

if TYPE_CHECKING:
    from pagoda.kernels.step import StepArrays

    from .decoder import Block, Decoder
    from .layers.step import KVView

STREAM, NORMED, QKV, HEADS, BRANCH, OTHER, INNER, ACTED, SHARED, SHARED_INNER, SHARED_ACTED = range(11)
DOWN, Q_LATENT, Q, VALUES = range(11, 15)
"""Registers: residual stream; its normalized copy; q, k, v; attention's answer; a branch's result, and another's beside
it; the feed-forward's projection and what the activation makes of it; the same of an expert that every token passes,
behind its answer.

Of latent attention: what is projected down (queries or their latent, then the slot), the queries' latent normalized,
queries, values of every head; QKV has what pages are asked with and the slot, HEADS latents mixed by attention."""
PASSING = (INNER, ACTED, SHARED_INNER, SHARED_ACTED)
"""Of which some rows are there at a time: for a prompt of the 1B shape they would be two thirds of all."""
DTYPES = (torch.float32, torch.bfloat16)


def why_not(decoder: Decoder) -> str | None:
    """Why this decoder must be run op by op; None when a program can be written."""
    if dispatch.load_providers()["cpu"] is not None:
        return "the C++ kernels are missing"
    if dispatch.restriction() not in ("", "cpu"):
        return f"only {dispatch.restriction()} kernels are asked for"
    if decoder.embed.device.type != "cpu" or decoder.embed.dtype not in DTYPES:
        return f"{decoder.embed.dtype} on {decoder.embed.device}"
    for block in decoder.blocks:
        matrices: list[object] = [linear.weight for linear in _projections(block)]
        for mlp in _dense(block):
            matrices += [mlp.up.weight, mlp.down.weight]
        if isinstance(block.mlp, MoE):
            if isinstance(block.mlp.gate_up, CachedExperts):
                return "experts that are read when they are asked for"
            routers = [found.weight for found in (block.mlp.router, block.mlp.shared_router) if found is not None]
            if block.mlp.exact and not isinstance(routers[0], Tensor):
                return "a router that is packed and multiplied in float32"
            matrices += [found for found in routers if not isinstance(found, Tensor)]
            for stack in (block.mlp.gate_up, block.mlp.down):
                matrices += stack.experts if isinstance(stack, ExpertStack) else [stack]
        if any(not isinstance(found, PackedMatrix) or found.packed is None for found in matrices):
            return "weights in a format that no kernel knows"
    if _widths(decoder) is None:
        return "layers of different widths"
    return None


def _projections(block: Block) -> list[Linear]:
    """Of attention."""
    attn = block.attn
    if isinstance(attn, Attention):
        return [attn.qkv, attn.out]
    return [attn.down, attn.out] if attn.q_up is None else [attn.down, attn.q_up, attn.out]


def _dense(block: Block) -> list[MLP]:
    """The feed-forward that every token passes, if there is one."""
    mlp = block.mlp if isinstance(block.mlp, MLP) else block.mlp.shared
    return [] if mlp is None else [mlp]


def is_whole(decoder: Decoder) -> bool:
    """Whether the program can begin with the tokens' ids and end with their logits: nothing stands between embedding
    and blocks, or between the head's product and the logits.
    """
    spec = decoder.spec
    plain = spec.logit_scale == 1.0 and not spec.logit_soft_cap and decoder.embed_scale == 1.0
    beside = (decoder.positions, decoder.project_in, decoder.project_out)
    packed = isinstance(decoder.embed, PanelMatrix) and isinstance(decoder.head, PanelMatrix)
    return plain and packed and all(part is None for part in beside)


Widths = dict[int, int]  # by register


def _attention_widths(attn: AttentionSpec | LatentSpec) -> Widths:
    if isinstance(attn, AttentionSpec):
        return {QKV: attn.q_size + 2 * attn.kv_size, HEADS: attn.q_size}
    q_size = attn.num_heads * attn.head_dim
    return {
        QKV: (attn.num_heads + 1) * attn.latent_dim, HEADS: attn.num_heads * attn.kv_rank,
        DOWN: (attn.q_rank or q_size) + attn.latent_dim, Q_LATENT: attn.q_rank, Q: q_size if attn.q_rank else 0,
        VALUES: attn.num_heads * attn.v_dim,
    }  # fmt: skip


def _feed_forward_widths(mlp: MLPSpec, inner: int, acted: int) -> Widths:
    return {inner: mlp.inner * (2 if mlp.gated else 1), acted: mlp.inner}


def _widths(decoder: Decoder) -> Widths | None:
    """Of all registers; None where layers ask for several of one."""
    hidden, found = decoder.spec.hidden_size, dict.fromkeys(range(VALUES + 1), 0)
    found |= dict.fromkeys((STREAM, NORMED, BRANCH, OTHER), hidden)
    for block in decoder.spec.blocks:
        own = _attention_widths(block.attn)
        if isinstance(block.mlp, MLPSpec):
            own |= _feed_forward_widths(block.mlp, INNER, ACTED)
        elif block.mlp.shared is not None:
            own |= _feed_forward_widths(block.mlp.shared, SHARED_INNER, SHARED_ACTED) | {SHARED: hidden}
        if any(found[reg] not in (0, width) for reg, width in own.items()):
            return None
        found |= own
    return found


class DecoderProgram:
    """Blocks and final norm of a decoder for which `why_not` finds no reason. Holds addresses of its weights."""

    def __init__(self, decoder: Decoder) -> None:
        from pagoda.kernels.program import Program

        widths = _widths(decoder)
        assert widths is not None
        self._rotary = list(decoder.rotary.values())
        self._tables = {rope: number for number, rope in enumerate(decoder.rotary)}
        self._last_layer = len(decoder.blocks) - 1
        self._program = Program(decoder.embed.dtype, [widths[reg] for reg in sorted(widths)], PASSING)
        self.is_whole = is_whole(decoder)
        if self.is_whole:
            self._program.embed(decoder.embed.packed)
        for block in decoder.blocks:
            getattr(self, f"_{block.placement}")(block)
        if decoder.norm is not None:
            self._norm(decoder.norm, STREAM, STREAM)
        if self.is_whole:
            self._program.head(decoder.head.packed, decoder.head_bias, dynamic=decoder.head.dynamic)

    def step(
        self, token_ids: list[int], positions: list[int], step: StepArrays, wanted: list[int] | None, likeliest: bool
    ) -> tuple[Tensor, list[int]]:
        """From ids to logits, where it `is_whole`: as `kernels.program.Program.step`."""
        length = max(positions) + 1
        tables = [table.up_to(length) for table in self._rotary]
        return self._program.step(token_ids, positions, tables, step, wanted, likeliest=likeliest)

    def run(self, x: Tensor, positions: Tensor, kv: KVView, wanted: Tensor | None) -> Tensor:
        """x ``[T, hidden]``, the embedded tokens, becomes the hidden states after the final norm, in place.

        With ``wanted`` (see `Decoder.forward`) its first rows become theirs, and the others are anything. Where the
        view has no arrays of the whole step, the program calls it in every layer.
        """
        length = int(positions.max()) + 1
        tables, step = [t.up_to(length) for t in self._rotary], kv.arrays()
        if step is None:
            return self._program.run_attending(
                x, positions, tables, kv.attend, wanted=wanted, attend_latent=kv.attend_latent
            )
        return self._program.run(x, positions, tables, step, wanted=wanted)

    def timings(self) -> dict[str, tuple[int, float]]:
        """As `kernels.program.Program.timings`."""
        return self._program.timings()

    # -- the six arrangements (`spec.Placement` draws them) ------------------------------------------------------------

    def _pre(self, block: Block) -> None:
        n1, n2 = block.norms
        self._norm(n1, STREAM, NORMED)
        self._attention(block, NORMED, BRANCH)
        self._add(block, BRANCH)
        self._norm(n2, STREAM, NORMED)
        self._mlp(block, NORMED, BRANCH)
        self._add(block, BRANCH)

    def _sandwich(self, block: Block) -> None:
        n1, n2, n3, n4 = block.norms
        self._norm(n1, STREAM, NORMED)
        self._attention(block, NORMED, BRANCH)
        self._norm(n2, BRANCH, BRANCH)
        self._add(block, BRANCH)
        self._norm(n3, STREAM, NORMED)
        self._mlp(block, NORMED, BRANCH)
        self._norm(n4, BRANCH, BRANCH)
        self._add(block, BRANCH)

    def _post(self, block: Block) -> None:
        n1, n2 = block.norms
        self._attention(block, STREAM, BRANCH)
        self._norm(n1, BRANCH, BRANCH)
        self._add(block, BRANCH)
        self._mlp(block, STREAM, BRANCH)
        self._norm(n2, BRANCH, BRANCH)
        self._add(block, BRANCH)

    def _post_residual(self, block: Block) -> None:
        n1, n2 = block.norms
        self._attention(block, STREAM, BRANCH)
        self._add(block, BRANCH)
        self._norm(n1, STREAM, STREAM)
        self._mlp(block, STREAM, BRANCH)
        self._add(block, BRANCH)
        self._norm(n2, STREAM, STREAM)

    def _parallel(self, block: Block) -> None:
        self._norm(block.norms[0], STREAM, NORMED)
        self._both(block, NORMED)

    def _parallel_two(self, block: Block) -> None:
        n1, n2 = block.norms
        self._norm(n1, STREAM, NORMED)
        self._norm(n2, STREAM, OTHER)
        self._both(block, OTHER)

    def _both(self, block: Block, mlp_input: int) -> None:
        self._attention(block, NORMED, BRANCH)
        self._mlp(block, mlp_input, OTHER)
        self._program.add(OTHER, BRANCH)
        self._add(block, BRANCH)

    # -- what they are made of -----------------------------------------------------------------------------------------

    def _add(self, block: Block, branch: int) -> None:
        self._program.add(branch, STREAM, block.scale)

    def _norm(self, norm: Norm, src: int, dst: int) -> None:
        self._program.norm(src, dst, norm.weight, norm.bias, **_norm_options(norm))

    def _linear(self, linear: Linear, src: int, dst: int) -> None:
        weight = linear.weight
        assert isinstance(weight, PackedMatrix)
        assert weight.packed is not None
        self._program.linear(src, dst, weight.packed, linear.bias, dynamic=weight.dynamic)

    def _attention(self, block: Block, src: int, dst: int) -> None:
        attn, program = block.attn, self._program
        if isinstance(attn, LatentAttention):
            return self._latent(attn, src, dst)
        spec = attn.spec
        self._linear(attn.qkv, src, QKV)
        if attn.normed == "all":
            self._head_norm(attn.q_norm, 0, spec.q_size, 1)
            self._head_norm(attn.k_norm, spec.q_size, spec.kv_size, 1)
        if spec.clip:
            program.clip(QKV, spec.clip)
        if attn.normed in ("head", "each"):
            self._head_norm(attn.q_norm, 0, spec.head_dim, spec.num_heads)
            self._head_norm(attn.k_norm, spec.q_size, spec.head_dim, spec.num_kv_heads)
        if spec.rope is not None:
            heads = spec.num_heads + spec.num_kv_heads
            program.rotary(QKV, self._tables[spec.rope], heads, spec.head_dim, interleaved=spec.rope.interleaved)
        heads, last = (spec.num_heads, spec.num_kv_heads), attn.layer == self._last_layer
        program.attend(QKV, HEADS, attn.layer, heads, spec.head_dim, **attn.options, last=last)
        if attn.out_norm is not None:
            self._norm(attn.out_norm, HEADS, HEADS)
        self._linear(attn.out, HEADS, dst)

    def _latent(self, attn: LatentAttention, src: int, dst: int) -> None:
        spec, program, queries = attn.spec, self._program, DOWN
        self._linear(attn.down, src, DOWN)
        if attn.q_up is not None and attn.q_norm is not None:
            program.norm(
                DOWN, Q_LATENT, attn.q_norm.weight, attn.q_norm.bias, dim=spec.q_rank, **_norm_options(attn.q_norm)
            )
            self._linear(attn.q_up, Q_LATENT, Q)
            queries = Q
        slot_at = spec.q_rank or spec.num_heads * spec.head_dim
        program.latent(DOWN, queries, QKV, attn.k_up, spec.rope_dim, slot_at)
        self._head_norm(attn.kv_norm, spec.num_heads * spec.latent_dim, spec.kv_rank, 1)
        program.rotary(
            QKV, self._tables[spec.rope], spec.num_heads + 1, spec.latent_dim, interleaved=spec.rope.interleaved,
            first=spec.kv_rank,
        )  # fmt: skip
        program.attend(
            QKV, HEADS, attn.layer, (spec.num_heads, 1), spec.latent_dim, scale=spec.scale, soft_cap=0.0,
            v_dim=spec.kv_rank, last=attn.layer == self._last_layer,
        )  # fmt: skip
        program.head_products(HEADS, VALUES, attn.v_up)
        self._linear(attn.out, VALUES, dst)

    def _head_norm(self, norm: Norm | EachHeadNorm, first: int, dim: int, parts: int) -> None:
        each = isinstance(norm, EachHeadNorm)
        options = _norm_options(norm.plain) | {"round_first": True} if each else _norm_options(norm)
        weight, bias = (None if w is None else w.contiguous() for w in (norm.weight, norm.bias))
        self._program.head_norm(QKV, first, dim, parts, weight, bias, own_weights=each, **options)

    def _mlp(self, block: Block, src: int, dst: int) -> None:
        if isinstance(block.mlp, MLP):
            return self._feed_forward(block.mlp, src, dst, INNER, ACTED)
        self._experts(block.mlp, src, dst)
        if block.mlp.shared is not None:
            self._feed_forward(block.mlp.shared, src, SHARED, SHARED_INNER, SHARED_ACTED)
            if block.mlp.shared_router is not None:
                self._logits(block.mlp.shared_router, src)
                self._program.gate(SHARED)
            self._program.add(SHARED, dst)

    def _feed_forward(self, mlp: MLP, src: int, dst: int, inner: int, acted: int) -> None:
        self._linear(mlp.up, src, inner)
        self._program.activation(inner, acted, mlp.spec.act, gated=mlp.spec.gated)
        if mlp.inner_norm is not None:
            self._norm(mlp.inner_norm, acted, acted)
        self._linear(mlp.down, acted, dst)

    def _logits(self, router: Linear, src: int, *, exact: bool = False) -> None:
        weight = router.weight
        if isinstance(weight, Tensor):
            return self._program.logits(src, weight, router.bias, exact=exact)
        assert isinstance(weight, PackedMatrix)
        assert weight.packed is not None
        self._program.packed_logits(src, weight.packed, router.bias, dynamic=weight.dynamic)

    def _experts(self, moe: MoE, src: int, dst: int) -> None:
        up, down = ([stack[expert] for expert in range(moe.spec.num_experts)] for stack in (moe.gate_up, moe.down))
        numbers: dict[object, int] = {}
        pairs = list(zip(up, down, strict=True))
        self._logits(moe.router, src, exact=moe.exact)
        self._program.route(moe.correction, moe.spec.num_experts, **moe.rule)
        self._program.experts(
            src, dst, [m.packed for m in up], [m.packed for m in down], **moe.options,
            dynamic=[(one.dynamic, other.dynamic) for one, other in pairs], top_k=moe.spec.router.top_k,
            alike=[numbers.setdefault((one.format, other.format), len(numbers)) for one, other in pairs],
        )  # fmt: skip


def _norm_options(norm: Norm) -> dict[str, Any]:
    spec = norm.spec
    centred = spec.kind == "layer"
    return {
        "eps": spec.eps,
        "offset": 0.0 if centred else spec.offset,
        "centred": centred,
        "round_first": not centred and rounds_first(spec.offset, spec.fp32_weight),
    }
