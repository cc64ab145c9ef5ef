"""Arithmetic of a model: dimensions, KV format, bytes of weights and of one step. No torch.

The planner and the ledger decide from these numbers before anything is loaded, so parameter counts are exact
(they come from the same table that the model allocates from) and step sizes are upper estimates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagoda.core.errors import ConfigError, choices
from pagoda.core.types import DTYPE_BYTES, KVFormat
from pagoda.weights.quantization import Quantization, Role
from pagoda.weights.reader import RING_BYTES

from .params import Param, Table, parameters
from .spec import AttentionSpec, DecoderSpec, LatentSpec, MLPSpec, MoESpec, RopeSpec

if TYPE_CHECKING:
    from pagoda.weights.formats.base import WeightFormat

FLOAT32 = 4
TINY_PARAMS = 32_000_000
"""Up to here ``dtype="auto"`` runs in float32 on a CPU: memory is no matter, rounding is."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A parameter that a weight format may take: ``count`` matrices ``[rows, cols]`` (experts; else 1)."""

    name: str
    role: Role
    rows: int
    cols: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of one model.

    ``v_dim`` 0 means latent pages (MLA). ``windows`` has one entry per layer, 0 for full attention.
    ``num_params`` counts tied embeddings once; ``num_float32_params`` of them stay float32 in every dtype.
    ``attention_floats`` and ``mlp_floats`` are the elements per token that the widest layer holds inside each branch,
    residual and norms aside. ``scores_written`` says that attention has a feature (soft cap, sinks, ALiBi) for which
    the reference op writes its scores out. ``matrices`` are what quantization may pack (none in a fallback model).
    ``experts_per_token``: of each mixture layer, 0 in a dense model; ``expert_floats``: the elements that a token holds
    for each expert which it passes.
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
    attention_floats: int = 0
    mlp_floats: int = 0
    scores_written: bool = False
    rope_dims: tuple[int, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    experts_per_token: int = 0
    expert_floats: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape of a Hugging Face config dict. Raises ModelError as `families.read_spec` does."""
        from .families import read_spec

        return cls.from_spec(read_spec(config))

    @classmethod
    def from_spec(cls, spec: DecoderSpec) -> ModelShape:
        attn = spec.blocks[0].attn
        latent = isinstance(attn, LatentSpec)
        params = parameters(spec)
        table = params.values()
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
            max_position=max([spec.max_position, *(_yarn_reach(rope) for rope in ropes)]),
            windows=tuple(block.attn.window for block in spec.blocks),
            num_params=sum(p.count for p in table),
            num_float32_params=sum(p.count for p in table if p.float32),
            attention_floats=max(_attention_floats(block.attn) for block in spec.blocks),
            mlp_floats=max(_mlp_floats(block.mlp, spec.hidden_size) for block in spec.blocks),
            scores_written=any(_writes_scores(block.attn) for block in spec.blocks),
            rope_dims=tuple(sorted(rope.dim for rope in ropes)),
            matrices=_matrices(params),
            experts_per_token=max((b.mlp.router.top_k for b in spec.blocks if isinstance(b.mlp, MoESpec)), default=0),
            expert_floats=max((_expert_floats(block.mlp, spec.hidden_size) for block in spec.blocks), default=0),
        )

    @property
    def is_latent(self) -> bool:
        return self.v_dim == 0

    def weight_bytes(self, dtype: str, quantization: Quantization | None = None) -> int:
        """Bytes of all parameters, equal to what the loaded model holds."""
        num_bytes = (self.num_params - self.num_float32_params) * _size(dtype) + self.num_float32_params * FLOAT32
        if quantization is None:
            return num_bytes
        for m in self.matrices:
            for found, count in quantization.each(m.name, m.role, m.count).items():
                if found is not None:
                    num_bytes += count * (found.num_bytes(m.rows, m.cols) - m.rows * m.cols * _size(dtype))
        return num_bytes

    def reading_bytes(self, dtype: str, quantization: Quantization) -> int:
        """What plain matrices pass through while they are read: whole, or by rows where their format takes those."""
        size = _size(dtype)
        found = ((m.rows * m.cols * size, f) for f, m in self._formats(quantization))
        by_rows = min(self.num_params * size // 8, RING_BYTES)
        return max((by_rows if f is None or f.row_wise else num_bytes for num_bytes, f in found), default=0)

    def packing_bytes(self, quantization: Quantization, *, ready: bool = False) -> int:
        """Bytes that packing takes at its largest matrix, beside the packed model and the tensor that was read;
        ``ready``: of a checkpoint that has these formats, whose codes are only laid out where a kernel wants that.
        """
        found = ((f, m) for f, m in self._formats(quantization) if f is not None and (f.kernel or not ready))
        return max((f.scratch_bytes(m.rows, m.cols) for f, m in found), default=0)

    def unpacking_bytes(self, quantization: Quantization) -> int:
        """Bytes of one step beside its activations, for weights that are unpacked while they are multiplied."""
        found = self._formats(quantization)
        return max((f.unpacking_bytes(m.cols) for f, m in found if f is not None), default=0)

    def _formats(self, quantization: Quantization) -> Iterator[tuple[WeightFormat | None, Matrix]]:
        """Every matrix with its format, a stack of experts with each of its own."""
        for m in self.matrices:
            for found in quantization.each(m.name, m.role, m.count):
                yield found, m

    def kv_format(self, page_size: int, dtype: str) -> KVFormat:
        """The page accounting's view of this model's KV."""
        _size(dtype)
        return KVFormat(self.num_layers, self.num_kv_heads, self.k_dim, self.v_dim, page_size, dtype)

    def table_bytes(self, length: int, dtype: str) -> int:
        """Bytes of the rotary tables (cos and sin) once positions up to ``length`` were seen."""
        return sum(self.rope_dims) * length * _size(dtype)

    def activation_bytes(
        self, num_tokens: int, num_logit_rows: int, dtype: str, *, max_kv_len: int = 0, collects_probs: bool = False
    ) -> int:
        """Upper estimate of what one step of ``num_tokens`` tokens holds at its largest moment (tests measure it).

        A layer holds the residual and its normalized copy (twice in float32 inside a norm), and the larger of its two
        branches; the head holds the gathered rows, and logits in the model's dtype and twice in float32. Attention
        over ``max_kv_len`` slots by ``num_logit_rows`` sequences adds the reference op's scratch, more where it
        ``collects_probs`` for a KV policy.
        """
        size = _size(dtype)
        scratch = self._attention_scratch(num_tokens, num_logit_rows, size, max_kv_len, collects_probs)
        around = num_tokens * self.hidden_size * (3 * size + 2 * FLOAT32)
        experts = min(num_tokens * self.experts_per_token, max(num_tokens, EXPERT_ROWS)) * self.expert_floats * size
        attention = num_tokens * self.attention_floats * size + scratch
        head = num_logit_rows * (self.hidden_size * size + self.vocab_size * (size + 2 * FLOAT32))
        return SMALL_BYTES + around + experts + max(attention, num_tokens * self.mlp_floats * size, head)

    def _attention_scratch(self, num_tokens: int, num_seqs: int, size: int, kv_len: int, collects_probs: bool) -> int:
        """Bytes of the reference attention's copies: gathered pages, masks of a tile of queries, scores."""
        slot = (self.k_dim + self.v_dim) * size
        gathered = min(max(num_seqs, 1) * self.num_kv_heads * kv_len * slot, max(kv_len * slot, GATHER_BYTES))
        masks = min(num_tokens, QUERY_TILE) * kv_len * (MASK_BYTES + size) if num_tokens > 1 else 0
        if not (self.scores_written or collects_probs):
            return gathered + masks
        scores = 4 * FLOAT32 * min(num_tokens * self.num_q_heads * kv_len, SCORE_ELEMS)
        return gathered * (1 + 2 * FLOAT32 // size) + masks + scores


GATHER_BYTES, QUERY_TILE, SCORE_ELEMS = 32 << 20, 256, 1 << 21
"""The reference attention's bounds on its scratch (kernels/ops; a test holds these equal to them)."""

EXPERT_ROWS = 1024
"""Tokens of a stretch of experts that are multiplied together (kernels/csrc/experts.cpp), unless one has more."""

SMALL_BYTES = 1 << 17
"""Index arrays and the other small tensors of a step."""

MASK_BYTES = 11
"""Per query and slot of a tile: a distance (int64) and three booleans, besides the mask in the model's dtype."""


def _matrices(params: Table) -> tuple[Matrix, ...]:
    return tuple(_matrix(name, param) for name, param in params.items() if param.role != "plain")


def _matrix(name: str, param: Param) -> Matrix:
    *experts, rows, cols = param.shape
    return Matrix(name, param.role, rows, cols, *experts)


def _yarn_reach(rope: RopeSpec) -> int:
    """Positions that YaRN stretches to; configs that add it later (Qwen2.5) leave max_position_embeddings as it was."""
    return int(rope.original_max_position * rope.factor) if rope.kind == "yarn" else 0


def _attention_floats(attn: AttentionSpec | LatentSpec) -> int:
    """Elements per token alive inside attention: the projection, rotated and clipped copies, the answer."""
    if isinstance(attn, LatentSpec):
        return attn.num_heads * (3 * attn.head_dim + 2 * attn.latent_dim + attn.kv_rank + attn.v_dim)
    return 3 * (attn.q_size + 2 * attn.kv_size) + attn.q_size


def _mlp_floats(mlp: MLPSpec | MoESpec, hidden: int) -> int:
    """Elements per token alive inside the feed-forward; of experts, as if one expert had all tokens."""
    if isinstance(mlp, MoESpec):
        rows = 5 * mlp.inner + 4 * hidden + 8 * mlp.num_experts
        return rows + (4 * mlp.shared.inner if mlp.shared else 0)
    return (4 if mlp.gated else 2) * mlp.inner + (5 * mlp.inner if mlp.inner_norm else 0)


def _expert_floats(mlp: MLPSpec | MoESpec, hidden: int) -> int:
    """The token as a product reads it, what comes of gate and up, of the activation, and the expert's answer."""
    return 3 * mlp.inner + 3 * hidden if isinstance(mlp, MoESpec) else 0


def _writes_scores(attn: AttentionSpec | LatentSpec) -> bool:
    return isinstance(attn, AttentionSpec) and bool(attn.soft_cap or attn.sinks or attn.alibi_slopes)


def _size(dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ConfigError(choices("dtype", dtype, DTYPE_BYTES))
    return DTYPE_BYTES[dtype]
