"""Arithmetic of a model: dimensions, KV format, bytes of weights and of one step. No torch.

The planner and the ledger decide from these numbers before anything is loaded, so parameter counts are exact
(they come from the same table that the model allocates from) and step sizes are upper estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda.core.errors import ConfigError, choices
from pagoda.core.types import DTYPE_BYTES, KVFormat

from .params import parameters
from .spec import AttentionSpec, BlockSpec, DecoderSpec, LatentSpec, MoESpec

FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of one model.

    ``v_dim`` 0 means latent pages (MLA). ``windows`` has one entry per layer, 0 for full attention.
    ``num_params`` counts tied embeddings once; ``num_float32_params`` of them stay float32 in every dtype.
    ``step_floats`` (per token, in the model's dtype) and ``step_floats32`` (per token, float32) size one step's
    largest live set of activations, attention scores and logits aside.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    k_dim: int
    v_dim: int
    max_position: int
    windows: tuple[int, ...]
    num_params: int
    num_float32_params: int = 0
    step_floats: int = 0
    step_floats32: int = 0
    rope_dims: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape of a Hugging Face config dict. Raises ModelError as `families.read_spec` does."""
        from .families import read_spec

        return cls.from_spec(read_spec(config))

    @classmethod
    def from_spec(cls, spec: DecoderSpec) -> ModelShape:
        attn = spec.blocks[0].attn
        latent = isinstance(attn, LatentSpec)
        table = parameters(spec).values()
        ropes = {block.attn.rope for block in spec.blocks if block.attn.rope is not None}
        return cls(
            family=spec.family,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            num_layers=len(spec.blocks),
            num_q_heads=attn.num_heads,
            num_kv_heads=1 if isinstance(attn, LatentSpec) else attn.num_kv_heads,
            k_dim=attn.latent_dim if isinstance(attn, LatentSpec) else attn.head_dim,
            v_dim=0 if latent else attn.head_dim,
            max_position=spec.max_position,
            windows=tuple(block.attn.window for block in spec.blocks),
            num_params=sum(p.count for p in table),
            num_float32_params=sum(p.count for p in table if p.float32),
            step_floats=max(_live_floats(block, spec.hidden_size) for block in spec.blocks),
            step_floats32=2 * spec.hidden_size,
            rope_dims=tuple(sorted(rope.dim for rope in ropes)),
        )

    @property
    def is_latent(self) -> bool:
        return self.v_dim == 0

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all parameters, equal to what the loaded model holds."""
        return (self.num_params - self.num_float32_params) * _size(dtype) + self.num_float32_params * FLOAT32

    def kv_format(self, page_size: int, dtype: str) -> KVFormat:
        """The page accounting's view of this model's KV."""
        _size(dtype)
        return KVFormat(self.num_layers, self.num_kv_heads, self.k_dim, self.v_dim, page_size, dtype)

    def table_bytes(self, length: int, dtype: str) -> int:
        """Bytes of the rotary tables (cos and sin) once positions up to ``length`` were seen."""
        return sum(self.rope_dims) * length * _size(dtype)

    def activation_bytes(self, num_tokens: int, num_logit_rows: int, dtype: str, *, max_kv_len: int = 0) -> int:
        """Upper estimate of what one step of ``num_tokens`` tokens holds at its largest moment.

        The larger of a layer's live set (residual, its two inputs, the widest projection and its activation, float32
        copies inside norms) and the head's (rows gathered, logits in the model's dtype and twice in float32, for the
        scale and cap). With ``max_kv_len`` the attention workspace is added: float32 scores and probabilities of one
        block of queries against that many slots.
        """
        size = _size(dtype)
        layer = num_tokens * (self.step_floats * size + self.step_floats32 * FLOAT32)
        head = num_logit_rows * (self.hidden_size * size + self.vocab_size * (size + 2 * FLOAT32))
        residual = num_tokens * self.hidden_size * size
        scores = 2 * FLOAT32 * self.num_q_heads * min(num_tokens, QUERY_BLOCK) * max_kv_len
        return residual + max(layer + scores, head)


QUERY_BLOCK = 128
"""Queries whose scores against all slots exist at one time in the reference attention, per sequence."""


def _live_floats(block: BlockSpec, hidden: int) -> int:
    """Elements per token that are alive at the widest point of one layer, in the model's dtype."""
    return 3 * hidden + max(_attention_floats(block.attn), _mlp_floats(block, hidden))


def _attention_floats(attn: AttentionSpec | LatentSpec) -> int:
    if isinstance(attn, LatentSpec):
        return attn.num_heads * (2 * attn.head_dim + 2 * attn.latent_dim + attn.kv_rank + attn.v_dim)
    return 2 * (attn.q_size + 2 * attn.kv_size) + attn.q_size


def _mlp_floats(block: BlockSpec, hidden: int) -> int:
    mlp = block.mlp
    if isinstance(mlp, MoESpec):
        rows = mlp.router.top_k * (3 * mlp.inner + 2 * hidden)
        return rows + 4 * mlp.num_experts + (3 * mlp.shared.inner if mlp.shared else 0)
    return (4 if mlp.gated else 2) * mlp.inner


def _size(dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ConfigError(choices("dtype", dtype, DTYPE_BYTES))
    return DTYPE_BYTES[dtype]
