"""What a model sees of the KV during one step: write the chunk's keys and values, attend over everything held.

Built once per step from the tables of the batch; all index arrays are made in numpy for all layers at once. Where every
table is of granularity ``sequence`` (exact attention), the layers share everything but an offset.

Sizes: S sequences, T tokens of the step, L layers, H kv-heads, R rows of one layer, W columns of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.types import Granularity, KVFormat
from ..kernels.ops import LayerTable, kv_write, paged_attention
from ..kernels.step import StepArrays
from .pages import Int32s
from .storage import PageStorage
from .table import PageTable


class Chooser(Protocol):
    """Says which pages a sequence of one token reads in a layer; see ``StepView``."""

    def choose(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor]: ...


class StepView:
    """The KV view (see ``models.layers.step.KVView``) over pages. Valid for one step: the tables must have reserved the
    step's tokens, and not have committed them.

    tables, q_lens   the batch: sequence s brings ``q_lens[s]`` tokens, side by side in that order.
    collect_probs    sequences (by index, or all) whose attention probabilities are summed per slot:
                     ``prob_sums[layer][s]`` float32 [H, slots], over the chunk's queries and the heads of the group.
                     They are attended apart from the others, who keep the fast way.
    tap              sees ``(layer, q, options)`` of every layer: how KV policies come to the queries.
    choosers         sequence (by index) of one token -> who says, with ``choose(layer, q [Hq, Dk], scale)``, what
                     it reads: page ids int32 [H, K] and slots int32 [H], all pages but the last full.
    """

    def __init__(
        self,
        storage: PageStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        *,
        collect_probs: bool | Iterable[int] = False,
        tap: Callable[[int, Tensor, Mapping[str, object]], None] | None = None,
        choosers: Mapping[int, Chooser] | None = None,
    ) -> None:
        assert len(tables) == len(q_lens)
        for table, num in zip(tables, q_lens, strict=True):
            assert table.tail_owned, "a step over a page that others read"
            assert table.room >= num, "a step over slots that were not reserved"
        self._fmt, self._pages, self._layout = storage.fmt, storage.pages, storage.layout
        self.num_tokens, self._tap = sum(q_lens), tap
        self.prob_sums: dict[int, dict[int, Tensor]] = {}
        self._index = index = _StepIndex(self._fmt, tables, q_lens)
        page_ids, slots = index.writes()
        self._page_ids, self._slots = (torch.from_numpy(x).to(storage.device) for x in (page_ids, slots))
        everybody = set(range(len(tables)))
        self._watched = everybody if collect_probs is True else everybody.intersection(collect_probs or ())
        self._choosers = choosers or {}
        assert not self._watched & set(self._choosers), "probability sums of pages that were not read"

    def arrays(self) -> StepArrays | None:
        """The whole step as plain arrays, for those who run all layers at once. None where layers must come one by one:
        probabilities are summed, somebody sees the queries, or a sequence chooses its pages by them.
        """
        if self._watched or self._choosers or self._tap is not None or self._pages.device.type != "cpu":
            return None
        index = self._index
        rows, row_of, offset, kv_lens, starts = (
            torch.from_numpy(np.ascontiguousarray(x))
            for x in (index.rows, index.row_of, index.offset, index.kv_lens, index.starts)
        )
        page_ids, slots = self._page_ids.contiguous(), self._slots.contiguous()  # numpy may index into any order
        return StepArrays(self._pages, self._layout, rows, row_of, offset, kv_lens, starts, page_ids, slots)

    @cached_property
    def _parts(self) -> list[_Part]:
        """The sequences that are attended together, layer by layer."""
        rows = torch.from_numpy(self._index.rows).to(self._pages.device)
        choosing = set(self._choosers)
        others = set(range(len(self._index.q_lens))) - self._watched - choosing
        return [
            _Part(self._index, rows, sorted(members), probs)
            for members, probs in ((others, False), (self._watched, True), (choosing, False))
            if members
        ]

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        """Writes k ``[T, H, k_dim]``, v ``[T, H, v_dim]``; attends with q ``[T, Hq, k_dim]``: ``[T, Hq, v_dim]``."""
        fmt = self._fmt
        assert k.shape == (self.num_tokens, fmt.num_kv_heads, fmt.k_dim), f"k {tuple(k.shape)} for {fmt}"
        assert v.shape == (self.num_tokens, fmt.num_kv_heads, fmt.v_dim), f"v {tuple(v.shape)} for {fmt}"
        options = {
            "scale": scale, "window": window, "soft_cap": soft_cap, "sinks": sinks, "alibi_slopes": alibi_slopes,
        }  # fmt: skip
        return self._write_and_attend(layer, q, k, v, None, options)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """MLA: writes latent ``[T, 1, k_dim]``, its first ``v_dim`` columns V too, then attends: ``[T, Hq, v_dim]``."""
        fmt = self._fmt
        assert latent.shape == (self.num_tokens, fmt.num_kv_heads, fmt.k_dim), f"latent {tuple(latent.shape)} for {fmt}"
        return self._write_and_attend(layer, q, latent, None, v_dim, {"scale": scale})

    def _write_and_attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, v_dim: int | None, options: Mapping[str, object]
    ) -> Tensor:
        fmt = self._fmt
        assert (q.shape[0], q.shape[2]) == (self.num_tokens, fmt.k_dim), f"q {tuple(q.shape)} for {fmt}"
        if self._tap is not None:
            self._tap(layer, q, options)
        shared = len(self._page_ids) == 1
        page_ids = self._page_ids[0] + layer * fmt.num_kv_heads if shared else self._page_ids[layer]
        kv_write(k, v, self._pages, self._layout, page_ids, self._slots[0 if shared else layer])
        if len(self._parts) == 1:
            return self._attend_part(self._parts[0], layer, q, v_dim, options)
        out = q.new_empty(self.num_tokens, q.shape[1], fmt.v_dim if v_dim is None else v_dim)
        for part in self._parts:
            assert part.tokens is not None
            mine = self._attend_part(part, layer, q.index_select(0, part.tokens), v_dim, options)
            out.index_copy_(0, part.tokens, mine)
        return out

    def _attend_part(
        self, part: _Part, layer: int, q: Tensor, v_dim: int | None, options: Mapping[str, object]
    ) -> Tensor:
        table = part.table(layer)
        if part.members[0] in self._choosers:
            table = self._chosen_table(part, layer, q, options)
        sums = None
        if part.probs:
            sums = q.new_empty(*table.kv_lens.shape, table.max_kv_len, dtype=torch.float32)
        out = paged_attention(q, self._pages, self._layout, table, v_dim=v_dim, prob_sums=sums, **options)  # type: ignore[arg-type]
        if sums is not None:
            assert table.kv_lens_cpu is not None
            self.prob_sums[layer] = {s: sums[i, :, : max(table.kv_lens_cpu[i])] for i, s in enumerate(part.members)}
        return out

    def _chosen_table(self, part: _Part, layer: int, q: Tensor, options: Mapping[str, object]) -> LayerTable:
        """A row of single pages for every (sequence, head): those that its chooser named."""
        scale = options["scale"]
        assert isinstance(scale, float | int)
        chosen = [self._choosers[s].choose(layer, q[i], float(scale)) for i, s in enumerate(part.members)]
        num_heads, width = self._fmt.num_kv_heads, max(ids.shape[1] for ids, _ in chosen)
        rows = torch.cat([torch.nn.functional.pad(ids, (0, width - ids.shape[1])) for ids, _ in chosen])
        lens = torch.stack([lens for _, lens in chosen])
        pairs = torch.arange(len(rows), dtype=torch.int32, device=rows.device).view(-1, num_heads)
        whole, lens_cpu = part.table(layer), lens.tolist()
        return replace(
            whole,
            rows=rows.contiguous(),
            row_of=pairs,
            offset=torch.zeros_like(pairs),
            kv_lens=lens,
            max_kv_len=max(map(max, lens_cpu)),
            kv_lens_cpu=lens_cpu,
        )


class _StepIndex:
    """Where everything lies, in numpy. ``L1`` is 1 where all layers are alike but for an offset, else L::

    rows     [L1, R, W]   run bases
    row_of   [S, H]       rows of the (sequence, head)
    offset   [L, S, H]    added to the run bases
    kv_lens  [L1, S, H]   slots once the step's tokens are written
    starts   [S + 1]      first token of each sequence
    """

    def __init__(self, fmt: KVFormat, tables: Sequence[PageTable], q_lens: Sequence[int]) -> None:
        self.fmt, self.q_lens = fmt, np.array(q_lens, np.int32)
        self.starts = np.zeros(len(tables) + 1, np.int32)
        np.cumsum(self.q_lens, out=self.starts[1:])
        if all(table.granularity is Granularity.SEQUENCE for table in tables):
            self.row_of, self.offset = _whole_rows(fmt, len(tables))
            self.kv_lens = self._lengths(tables, 1)
            self.rows = self._stack(tables, 1, range(len(tables) + 1))
            return
        grains = [table.granularity for table in tables]
        coarse = np.array([grain is Granularity.SEQUENCE for grain in grains])[:, None]
        fine = np.array([grain is Granularity.HEAD for grain in grains])[:, None]
        heads, layers = np.arange(fmt.num_kv_heads), np.arange(fmt.num_layers)[:, None, None]
        firsts = np.concatenate([[0], np.cumsum(np.where(fine[:, 0], fmt.num_kv_heads, 1))])
        self.row_of = (firsts[:-1, None] + fine * heads).astype(np.int32)
        self.offset = (~fine * heads + coarse * fmt.num_kv_heads * layers).astype(np.int32)
        num_layers = 1 if coarse.all() else fmt.num_layers
        self.kv_lens = self._lengths(tables, num_layers)
        self.rows = self._stack(tables, num_layers, firsts.tolist())

    def _lengths(self, tables: Sequence[PageTable], num_layers: int) -> Int32s:
        lens: Int32s = np.empty((num_layers, len(tables), self.fmt.num_kv_heads), np.int32)
        for s, table in enumerate(tables):
            lens[:, s] = table.lens if table.num_rows == 1 else table.lens.reshape(num_layers, -1)
        lens += self.q_lens[:, None]
        return lens

    def _stack(self, tables: Sequence[PageTable], num_layers: int, firsts: Sequence[int]) -> Int32s:
        width = max(1, self.fmt.blocks_for(int(self.kv_lens.max())))
        rows: Int32s = np.zeros((num_layers, firsts[-1], width), np.int32)
        for first, last, table in zip(firsts[:-1], firsts[1:], tables, strict=True):
            bases = table.bases[:, :width]
            rows[:, first:last, : bases.shape[1]] = (
                bases if table.num_rows == 1 else bases.reshape(num_layers, last - first, -1)
            )
        return rows

    def writes(self) -> tuple[Int32s, Int32s]:
        """page_ids and slots [L1, T, H] of the step's tokens (with L1 == 1 the ids of layer 0)."""
        if len(self.kv_lens) == 1 and len(self.q_lens) == self.starts[-1]:
            return self._decode_writes()
        owner = np.repeat(np.arange(len(self.q_lens)), self.q_lens)  # [T] sequence of each token
        from_end = np.arange(len(owner)) - self.starts[1:][owner]  # -n … -1 within a chunk of n
        at = self.kv_lens[:, owner] + from_end.astype(np.int32)[:, None]
        column, slots = np.divmod(at, np.int32(self.fmt.page_size))
        layers = np.arange(len(at))[:, None, None]
        page_ids: Int32s = self.rows[layers, self.row_of[owner], column]
        page_ids += self.offset[: len(at), owner]
        return page_ids, slots

    def _decode_writes(self) -> tuple[Int32s, Int32s]:
        """``writes`` where every sequence brings one token and the layers are alike."""
        column, slots = np.divmod(self.kv_lens[0] - np.int32(1), np.int32(self.fmt.page_size))
        page_ids: Int32s = self.rows[0, self.row_of, column]
        page_ids += self.offset[0]
        return page_ids[None], slots[None]


@lru_cache(maxsize=256)
def _whole_rows(fmt: KVFormat, num_seqs: int) -> tuple[Int32s, Int32s]:
    """row_of and offset where every table has one row for all layers and heads; nobody writes into them."""
    heads, layers = np.arange(fmt.num_kv_heads), np.arange(fmt.num_layers)[:, None, None]
    row_of = np.repeat(np.arange(num_seqs, dtype=np.int32)[:, None], fmt.num_kv_heads, axis=1)
    offset = np.empty((fmt.num_layers, num_seqs, fmt.num_kv_heads), np.int32)
    offset[:] = heads + fmt.num_kv_heads * layers
    return row_of, offset


class _Part:
    """Sequences of the batch that are attended in one call. ``tokens``: which of the step's are theirs (None: all)."""

    def __init__(self, index: _StepIndex, rows: Tensor, members: list[int], probs: bool) -> None:
        self.members, self.probs = members, probs
        q_lens = index.q_lens[members]
        q_starts = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
        kv_lens = index.kv_lens[:, members]
        self._q_starts_cpu: list[int] = q_starts.tolist()
        self._max_q_len = int(q_lens.max())
        self._kv_lens_cpu: list[list[list[int]]] = kv_lens.tolist()
        self._max_kv_lens: list[int] = kv_lens.max(axis=(1, 2)).tolist()
        self._row_of, self._q_starts, offset, lens = (
            torch.from_numpy(x).to(rows.device)
            for x in (index.row_of[members], q_starts, index.offset[:, members], kv_lens)
        )
        self._rows, self._offset, self._kv_lens = rows.unbind(), offset.unbind(), lens.unbind()
        self.tokens: Tensor | None = None
        if len(members) < len(index.q_lens):
            spans = [np.arange(index.starts[s], index.starts[s + 1]) for s in members]
            self.tokens = torch.from_numpy(np.concatenate(spans)).to(rows.device)

    def table(self, layer: int) -> LayerTable:
        """The ragged batch as one layer's attention sees it."""
        at = layer if len(self._rows) > 1 else 0
        return LayerTable(
            rows=self._rows[at],
            row_of=self._row_of,
            offset=self._offset[layer],
            kv_lens=self._kv_lens[at],
            q_starts=self._q_starts,
            q_starts_cpu=self._q_starts_cpu,
            max_q_len=self._max_q_len,
            max_kv_len=self._max_kv_lens[at],
            kv_lens_cpu=self._kv_lens_cpu[at],
        )
