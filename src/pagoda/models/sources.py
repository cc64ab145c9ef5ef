"""From checkpoint tensors to our parameters, as data: which tensor fills which region of which parameter (no torch).

A `Source` is one checkpoint tensor: its shape and its pieces. A `Piece` says how a part of it is cut out
(``view`` -> ``select`` -> ``permute``) and which rows of the target it fills. Splitting, transposing, stacking and
de-interleaving are all spelled that way, so the loader is one loop and needs one tensor in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .params import NUM_NORMS, Table, parameters
from .spec import AttentionSpec, BlockSpec, DecoderSpec, LatentSpec, MLPSpec, MoESpec

Shape = tuple[int, ...]
Select = tuple[int | slice, ...]
Region = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start:stop`` of ``param`` (of its ``expert``-th slice when >= 0; stop 0 means all) get this cut."""

    param: str
    start: int = 0
    stop: int = 0
    expert: int = -1
    view: Shape = ()
    select: Select = ()
    permute: Shape = ()

    @property
    def region(self) -> Region:
        return (self.param, self.expert, self.start)

    @property
    def is_rows(self) -> bool:
        """Whether the whole tensor becomes rows of the parameter as it stands."""
        return not (self.view or self.select or self.permute)

    def cut(self, tensor: Any) -> Any:
        """The part of a checkpoint tensor that fills the region: a view of it."""
        part = tensor.view(self.view) if self.view else tensor
        if self.select:
            part = part[self.select]
        return part.permute(self.permute) if self.permute else part


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor. ``alternative`` ones may stand in for others that cover the same regions.

    ``tied_head`` marks the head of a model whose config ties it to the embedding: normally not stored at all.
    """

    shape: Shape
    pieces: tuple[Piece, ...]
    alternative: bool = False
    tied_head: bool = False


@dataclass(slots=True)
class SourceTable:
    """Every checkpoint tensor that a model knows, by its full name."""

    spec: DecoderSpec
    entries: dict[str, Source] = field(default_factory=dict)

    def find(self, name: str) -> Source | None:
        """The entry for a checkpoint name, after the family's renames and optional prefix; None if unknown."""
        for candidate in self._spellings(name):
            if candidate in self.entries:
                return self.entries[candidate]
        return None

    def ignorable(self, name: str) -> bool:
        """Whether a tensor that we do not know may be skipped (buffers, towers of other modalities)."""
        return any(re.fullmatch(rule, s) for rule in self.spec.names.ignored for s in self._spellings(name))

    def expected(self) -> dict[str, Shape]:
        """Names and shapes of the tensors that a checkpoint normally holds."""
        return {name: source.shape for name, source in self.entries.items() if not source.alternative}

    def regions(self) -> set[Region]:
        """Every region that a complete checkpoint fills."""
        plain = (source for source in self.entries.values() if not source.alternative)
        return {piece.region for source in plain for piece in source.pieces}

    def missing(self, covered: set[Region]) -> list[str]:
        """Normal names of the tensors whose regions nothing has filled."""
        plain = ((name, source) for name, source in self.entries.items() if not source.alternative)
        return [name for name, source in plain if any(p.region not in covered for p in source.pieces)]

    def _spellings(self, name: str) -> Iterator[str]:
        names = self.spec.names
        for old, new in names.renames:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        yield name
        if names.optional_prefix:
            yield names.optional_prefix + name


def by_matrix(regions: Iterable[Region]) -> dict[str, dict[int, set[Region]]]:
    """Regions by parameter and expert (-1: it has none)."""
    found: dict[str, dict[int, set[Region]]] = {}
    for region in regions:
        found.setdefault(region[0], {}).setdefault(region[1], set()).add(region)
    return found


def regions_of(piece: Piece, regions: Mapping[str, Mapping[int, set[Region]]]) -> set[Region]:
    """All that the piece fills of them (`by_matrix`): a whole matrix, or a whole stack of them, is every one in it."""
    if piece.stop:
        return {piece.region}
    matrices = regions.get(piece.param, {})
    filled = matrices.values() if piece.expert < 0 else [matrices.get(piece.expert, set())]
    return {piece.region}.union(*filled)


def source_table(spec: DecoderSpec) -> SourceTable:
    """Expand the family's names over its spec."""
    build = _Builder(spec, parameters(spec))
    build.outside()
    for i, block in enumerate(spec.blocks):
        build.block(i, block)
    return SourceTable(spec, build.entries)


class _Builder:
    """Collects the entries; ``self.at`` is the checkpoint's prefix and ``self.to`` ours, of the layer at hand."""

    def __init__(self, spec: DecoderSpec, table: Table) -> None:
        self.spec, self.names, self.table = spec, spec.names, table
        self.entries: dict[str, Source] = {}
        self.at = self.to = ""

    # --- adding entries

    def add(self, name: str, shape: Shape, *pieces: Piece, alternative: bool = False) -> None:
        self.entries[self.at + name] = Source(shape, pieces, alternative)

    def whole(self, name: str, ours: str, *aliases: str) -> None:
        """A tensor that is one of our parameters as it stands, if we have that parameter."""
        param = self.table.get(self.to + ours)
        if param is None:
            return
        for n, alias in enumerate((name, *aliases)):
            self.add(alias, param.shape, Piece(self.to + ours), alternative=n > 0)

    def module(self, name: str, ours: str, *aliases: str) -> None:
        """Weight and bias of a module that is ours as it stands (transposed where the family stores ``[in, out]``)."""
        for leaf in ("weight", "bias"):
            param = self.table.get(f"{self.to}{ours}.{leaf}")
            if param is not None and self.names.conv1d and len(param.shape) == 2 and self.to:
                piece = Piece(f"{self.to}{ours}.{leaf}", permute=(1, 0))
                self.add(f"{name}.{leaf}", param.shape[::-1], piece)
            else:
                self.whole(f"{name}.{leaf}", f"{ours}.{leaf}", *(f"{a}.{leaf}" for a in aliases))

    def rows(self, name: str, ours: str, start: int, stop: int) -> None:
        """A module that fills rows ``start:stop`` of one of ours."""
        for leaf in ("weight", "bias"):
            param = self.table.get(f"{self.to}{ours}.{leaf}")
            if param is not None:
                shape = (stop - start, *param.shape[1:])
                self.add(f"{name}.{leaf}", shape, Piece(f"{self.to}{ours}.{leaf}", start, stop))

    # --- parts of the model

    def outside(self) -> None:
        names = self.names
        self.module(names.embed, "embed")
        self.module(names.positions, "positions")
        self.module(names.project_in, "project_in")
        self.module(names.project_out, "project_out")
        self.module(names.final_norm, "norm")
        self.module(names.lm_head, "lm_head", *names.lm_head_aliases)
        if self.spec.tied:
            shape = self.table["embed.weight"].shape
            for name in (names.lm_head, *names.lm_head_aliases):
                self.entries[f"{name}.weight"] = Source(shape, (), alternative=True, tied_head=True)

    def block(self, i: int, block: BlockSpec) -> None:
        names = self.names
        self.at, self.to = names.layer.format(i=i), f"layers.{i}."
        theirs = (names.norm1, names.norm2, names.norm3, names.norm4)
        for n in range(NUM_NORMS[block.placement]):
            self.module(theirs[n], f"norm{n + 1}")
        if isinstance(block.attn, LatentSpec):
            self.latent(block.attn)
        else:
            self.attention(block.attn)
        if isinstance(block.mlp, MoESpec):
            self.moe(block.mlp)
        else:
            self.mlp(block.mlp, "mlp.", names.gate, names.up, names.down)

    def attention(self, a: AttentionSpec) -> None:
        names = self.names
        q_end, k_end, v_end = a.q_size, a.q_size + a.kv_size, a.q_size + 2 * a.kv_size
        if names.qkv_layout == "split":
            self.rows(names.q, "attn.qkv", 0, q_end)
            self.rows(names.k, "attn.qkv", q_end, k_end)
            self.rows(names.v, "attn.qkv", k_end, v_end)
        elif names.qkv_layout == "stacked":
            self.module(names.qkv, "attn.qkv")
        else:
            self.grouped_qkv(a)
        self.head_norm(a, names.q_norm, "attn.q_norm", a.num_heads)
        self.head_norm(a, names.k_norm, "attn.k_norm", a.num_kv_heads)
        self.whole(names.sinks, "attn.sinks")
        self.module(names.out_norm, "attn.out_norm")
        self.module(names.out, "attn.out")

    def grouped_qkv(self, a: AttentionSpec) -> None:
        """One tensor whose rows go group by group: the q rows of a kv-head's group, then its k rows, its v rows."""
        group = a.num_heads // a.num_kv_heads
        for leaf in ("weight", "bias"):
            ours = f"{self.to}attn.qkv.{leaf}"
            param = self.table.get(ours)
            if param is None:
                continue
            view = (a.num_kv_heads, group + 2, a.head_dim, *param.shape[1:])
            every = slice(None)
            q_end, k_end = a.q_size, a.q_size + a.kv_size
            self.add(
                f"{self.names.qkv}.{leaf}",
                param.shape,
                Piece(ours, 0, q_end, view=view, select=(every, slice(0, group))),
                Piece(ours, q_end, k_end, view=view, select=(every, group)),
                Piece(ours, k_end, param.shape[0], view=view, select=(every, group + 1)),
            )

    def head_norm(self, a: AttentionSpec, theirs: str, ours: str, num_heads: int) -> None:
        """q/k norms; where every head has its own weight the checkpoint has one tensor per head (``{h}``)."""
        if a.qk_norm is None or a.qk_norm_over != "each":
            self.module(theirs, ours)
            return
        for h in range(num_heads):
            for leaf in ("weight", "bias"):
                if f"{self.to}{ours}.{leaf}" in self.table:
                    name = f"{theirs.format(h=h)}.{leaf}"
                    self.add(name, (a.head_dim,), Piece(f"{self.to}{ours}.{leaf}", expert=h))

    def latent(self, a: LatentSpec) -> None:
        names, q_rows = self.names, a.q_rank or a.num_heads * a.head_dim
        if a.q_rank:
            self.rows(names.q_down, "attn.down", 0, q_rows)
        else:  # the direct query projection has no bias even where the others do: those rows stay zero
            shape = (q_rows, self.spec.hidden_size)
            self.add(f"{names.q}.weight", shape, Piece(f"{self.to}attn.down.weight", 0, q_rows))
        self.rows(names.kv_down, "attn.down", q_rows, q_rows + a.latent_dim)
        self.module(names.q_down_norm, "attn.q_norm")
        self.module(names.q_up, "attn.q_up")
        self.module(names.kv_down_norm, "attn.kv_norm")
        view = (a.num_heads, a.nope_dim + a.v_dim, a.kv_rank)
        self.add(
            f"{names.kv_up}.weight",
            (a.num_heads * (a.nope_dim + a.v_dim), a.kv_rank),
            Piece(f"{self.to}attn.k_up", view=view, select=(slice(None), slice(0, a.nope_dim))),
            Piece(f"{self.to}attn.v_up", view=view, select=(slice(None), slice(a.nope_dim, None))),
        )
        self.module(names.out, "attn.out")

    def mlp(self, m: MLPSpec, ours: str, gate: str, up: str, down: str) -> None:
        if m.gated and self.names.gate_up:
            self.module(self.names.gate_up, f"{ours}gate_up")
        elif m.gated:
            self.rows(gate, f"{ours}gate_up", 0, m.inner)
            self.rows(up, f"{ours}gate_up", m.inner, 2 * m.inner)
        else:
            self.module(up, f"{ours}up")
        self.module(self.names.inner_norm, f"{ours}inner_norm")
        self.module(down, f"{ours}down")

    def moe(self, m: MoESpec) -> None:
        names, hidden = self.names, self.spec.hidden_size
        self.module(names.router, "mlp.router", *names.router_aliases)
        self.whole(names.correction_bias, "mlp.correction_bias")
        if names.experts_interleaved:
            self.interleaved_experts(m, hidden)
        else:
            self.experts(m, hidden)
        if m.shared is not None:
            self.mlp(m.shared, "mlp.shared.", names.shared_gate, names.shared_up, names.shared_down)
        self.module(names.shared_router, "mlp.shared_router")

    def experts(self, m: MoESpec, hidden: int) -> None:
        """One tensor per expert and projection; the stacked pair is accepted instead."""
        gate_up, down = f"{self.to}mlp.gate_up", f"{self.to}mlp.experts_down"
        stacked: list[Piece] = []
        for e in range(m.num_experts):
            at = self.names.expert.format(e=e)
            halves = ((self.names.expert_gate, 0, m.inner), (self.names.expert_up, m.inner, 2 * m.inner))
            for name, start, stop in halves:
                self.add(f"{at}{name}.weight", (m.inner, hidden), Piece(gate_up, start, stop, e))
                stacked.append(Piece(gate_up, start, stop, e, select=(e, slice(start, stop))))
            self.add(f"{at}{self.names.expert_down}.weight", (hidden, m.inner), Piece(down, expert=e))
        shape = (m.num_experts, 2 * m.inner, hidden)
        self.add(f"{self.names.experts}gate_up_proj", shape, *stacked, alternative=True)
        pieces = (Piece(down, expert=e, select=(e,)) for e in range(m.num_experts))
        self.add(f"{self.names.experts}down_proj", (m.num_experts, hidden, m.inner), *pieces, alternative=True)

    def interleaved_experts(self, m: MoESpec, hidden: int) -> None:
        """gpt_oss: stacked, ``[in, out]``, gate and up in alternating columns."""
        at, to, every = self.names.experts, f"{self.to}mlp.", range(m.num_experts)
        halves = [(n * m.inner, (n + 1) * m.inner, slice(n, None, 2)) for n in (0, 1)]
        weights = (
            Piece(f"{to}gate_up", start, stop, e, select=(e, slice(None), cut), permute=(1, 0))
            for e in every
            for start, stop, cut in halves
        )
        biases = (
            Piece(f"{to}gate_up_bias", start, stop, e, select=(e, cut)) for e in every for start, stop, cut in halves
        )
        down = (Piece(f"{to}experts_down", expert=e, select=(e,), permute=(1, 0)) for e in every)
        self.add(f"{at}gate_up_proj", (m.num_experts, hidden, 2 * m.inner), *weights)
        self.add(f"{at}gate_up_proj_bias", (m.num_experts, 2 * m.inner), *biases)
        self.add(f"{at}down_proj", (m.num_experts, m.inner, hidden), *down)
        self.whole(f"{at}down_proj_bias", "mlp.experts_down_bias")
