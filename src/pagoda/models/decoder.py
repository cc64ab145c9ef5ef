"""The decoder: blocks in their six arrangements, and the stack with embeddings and head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .layers.attention import Attention
from .layers.foresight import Foresight
from .layers.foresight import link as link_foresight
from .layers.latent import LatentAttention
from .layers.linear import Linear, Norm, Weights, rows
from .layers.linear import logits as head_logits
from .layers.mlp import MLP
from .layers.moe import MoE
from .layers.rotary import RotaryTable
from .layers.step import KVView, Step
from .params import NUM_NORMS
from .program import DecoderProgram, why_not
from .spec import BlockSpec, DecoderSpec, LatentSpec, MoESpec


class Block:
    """One decoder layer; `spec.Placement` draws the arrangements."""

    def __init__(self, spec: BlockSpec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}."
        self.attn: Attention | LatentAttention
        if isinstance(spec.attn, LatentSpec):
            self.attn = LatentAttention(spec.attn, weights, f"{name}attn.", layer)
        else:
            self.attn = Attention(spec.attn, weights, f"{name}attn.", layer)
        self.mlp: MLP | MoE
        if isinstance(spec.mlp, MoESpec):
            self.mlp = MoE(spec.mlp, weights, f"{name}mlp.")
        else:
            self.mlp = MLP(spec.mlp, weights, f"{name}mlp.")
        self.norms = [Norm(spec.norm, weights, f"{name}norm{n + 1}") for n in range(NUM_NORMS[spec.placement])]
        self.scale, self.placement = spec.residual_scale, spec.placement
        self.foresight: Foresight | None = None
        self.arrange: Callable[[Tensor, Step], Tensor] = getattr(self, f"_{spec.placement}")

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """``[T, hidden]`` -> ``[T, hidden]``."""
        return self.arrange(x, step)

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.scale == 1.0 else x + branch * self.scale

    def _pre(self, x: Tensor, step: Step) -> Tensor:
        n1, n2 = self.norms
        if self.foresight is not None:
            self.foresight.before_attention(x)
        x = self._add(x, self.attn(n1(x), step))
        return self._add(x, self.mlp(n2(x)))

    def _sandwich(self, x: Tensor, step: Step) -> Tensor:
        n1, n2, n3, n4 = self.norms
        x = self._add(x, n2(self.attn(n1(x), step)))
        return self._add(x, n4(self.mlp(n3(x))))

    def _post(self, x: Tensor, step: Step) -> Tensor:
        n1, n2 = self.norms
        x = self._add(x, n1(self.attn(x, step)))
        return self._add(x, n2(self.mlp(x)))

    def _post_residual(self, x: Tensor, step: Step) -> Tensor:
        n1, n2 = self.norms
        x = n1(self._add(x, self.attn(x, step)))
        return n2(self._add(x, self.mlp(x)))

    def _parallel(self, x: Tensor, step: Step) -> Tensor:
        y = self.norms[0](x)
        return self._add(x, self.attn(y, step) + self.mlp(y))

    def _parallel_two(self, x: Tensor, step: Step) -> Tensor:
        n1, n2 = self.norms
        return self._add(x, self.attn(n1(x), step) + self.mlp(n2(x)))


class Decoder:
    """Embeddings, blocks, final norm and head over finished weights.

    ``rope_length``: the longest sequence that will be asked for (see `layers.rotary.inverse_frequencies`).
    """

    def __init__(self, spec: DecoderSpec, weights: Weights, *, rope_length: int) -> None:
        self.spec = spec
        self.embed = weights["embed.weight"]
        self.positions = weights.get("positions.weight")
        self.project_in = Linear(weights, "project_in") if spec.projected else None
        self.project_out = Linear(weights, "project_out") if spec.projected else None
        self.blocks = [Block(block, weights, i) for i, block in enumerate(spec.blocks)]
        link_foresight(self.blocks)
        self.norm = None if spec.final_norm is None else Norm(spec.final_norm, weights, "norm")
        self.head, self.head_bias = weights.get("lm_head.weight", self.embed), weights.get("lm_head.bias")
        # transformers rounds the embedding scale to the model's dtype (sqrt(1152) is 34.0 in bfloat16)
        self.embed_scale = torch.tensor(spec.embed_scale, dtype=self.embed.dtype).item()
        ropes = {block.attn.rope for block in spec.blocks if block.attn.rope is not None}
        dtype, device = self.embed.dtype, self.embed.device
        self.rotary = {rope: RotaryTable(rope, dtype=dtype, device=device, length=rope_length) for rope in ropes}
        self.op_by_op = why_not(self)
        """Why the blocks are run op by op, or None when one program runs them all."""
        self._program = DecoderProgram(self) if self.op_by_op is None else None
        self.in_one_call = self._program is not None and self._program.is_whole

    def forward(self, token_ids: Tensor, positions: Tensor, kv: KVView, wanted: Tensor | None = None) -> Tensor:
        """token_ids, positions ``[T]`` int64 -> hidden ``[T, hidden_size]`` (after the final norm).

        ``wanted`` int64 ``[N]``, ascending: hidden ``[N, hidden_size]`` of these tokens alone, which are the last ones
        of their sequences. The others leave K and V behind and nothing else: the program's last layer is spared them.
        """
        x = self._embed(token_ids, positions)
        if self._program is not None and kv.in_program:
            return self._program.run(x, positions, kv, wanted)
        step = Step(kv, {rope: table.at(positions) for rope, table in self.rotary.items()})
        for block in self.blocks:
            x = block(x, step)
        if wanted is not None:
            x = x.index_select(0, wanted)
        return x if self.norm is None else self.norm(x)

    def step(
        self, token_ids: list[int], positions: list[int], kv: KVView, wanted: list[int] | None, likeliest: bool
    ) -> tuple[Tensor, list[int]] | None:
        """As `Model.step` in one call; None where ``forward`` and ``logits`` have to be asked."""
        if self._program is None or not self.in_one_call or not kv.in_program:
            return None
        arrays = kv.arrays()
        return None if arrays is None else self._program.step(token_ids, positions, arrays, wanted, likeliest)

    def timings(self) -> dict[str, tuple[int, float]]:
        """As `DecoderProgram.timings`; nothing where the blocks run op by op."""
        return {} if self._program is None else self._program.timings()

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden ``[N, hidden_size]`` -> float32 ``[N, vocab_size]``."""
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        logits = head_logits(hidden, self.head, self.head_bias)
        if self.spec.logit_scale != 1.0:
            logits = logits * self.spec.logit_scale
        if self.spec.logit_soft_cap:
            logits = torch.tanh(logits / self.spec.logit_soft_cap) * self.spec.logit_soft_cap
        return logits

    def _embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x = rows(self.embed, token_ids)
        if self.embed_scale != 1.0:
            x = x * self.embed_scale
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            x = x + self.positions[positions + self.spec.position_offset]
        return x
