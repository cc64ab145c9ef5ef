"""What a model sees of the KV during one step: write the chunk's keys and values, attend over everything held.

Built once per step from the tables of the batch; all index arrays are made in numpy for all layers at once. Where every
table is of granularity ``sequence`` (exact attention), the layers share everything but an offset.

Sizes: S sequences, T tokens of the step, L layers, H kv-heads, R rows of one layer, W columns::

    rows      [L or 1, R, W]       page ids of runs; unused cells 0
    kv_lens   [L or 1, S, H]       slots after the step's tokens are written
    page_ids  [L or 1, T, H]       where token t of head h is written
    slots     [L or 1, T, H]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.types import Granularity, KVFormat
from ..kernels.ops import LayerTable, kv_write, paged_attention
from .pages import Int32s
from .storage import PageStorage
from .table import PageTable


class StepView:
    """The KV view (see ``models.layers.step.KVView``) over pages. Valid for one step: the tables must have reserved the
    step's tokens, and not have committed them.

    tables, q_lens   the batch: sequence s brings ``q_lens[s]`` tokens, side by side in that order.
    collect_probs    sequences (by index, or all) whose attention probabilities are summed per slot:
                     ``prob_sums[layer][s]`` float32 [H, slots], over the chunk's queries and the heads of the group.
                     They are attended apart from the others, who keep the fast way.
    """

    def __init__(
        self,
        storage: PageStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        *,
        collect_probs: bool | Iterable[int] = False,
    ) -> None:
        assert len(tables) == len(q_lens)
        for table, num in zip(tables, q_lens, strict=True):
            assert table.tail_owned, "a step over a page that others read"
            assert table.room >= num, "a step over slots that were not reserved"
        self._fmt, self._pages, self._layout = storage.fmt, storage.pages, storage.layout
        self.num_tokens = sum(q_lens)
        self.prob_sums: dict[int, dict[int, Tensor]] = {}
        watched = set(range(len(tables)) if collect_probs is True else collect_probs or ())
        page_ids, slots = _write_index(self._fmt, tables, q_lens)
        self._page_ids = torch.from_numpy(page_ids).to(storage.device)
        self._slots = torch.from_numpy(slots).to(storage.device)
        starts = np.cumsum([0, *q_lens])
        self._parts: list[_Part] = []
        for probs, members in (
            (False, [s for s in range(len(tables)) if s not in watched]),
            (True, [s for s in range(len(tables)) if s in watched]),
        ):
            if not members:
                continue
            tokens = None
            if len(members) < len(tables):
                spans = [np.arange(starts[s], starts[s + 1]) for s in members]
                tokens = torch.from_numpy(np.concatenate(spans)).to(storage.device)
            batch = [tables[s] for s in members], [q_lens[s] for s in members]
            self._parts.append(_Part(members, tokens, probs, _Index(self._fmt, *batch, storage.device)))

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
        table = part.index.table(layer)
        sums = None
        if part.probs:
            sums = q.new_empty(*table.kv_lens.shape, table.max_kv_len, dtype=torch.float32)
        out = paged_attention(q, self._pages, self._layout, table, v_dim=v_dim, prob_sums=sums, **options)  # type: ignore[arg-type]
        if sums is not None:
            assert table.kv_lens_cpu is not None
            self.prob_sums[layer] = {s: sums[i, :, : max(table.kv_lens_cpu[i])] for i, s in enumerate(part.members)}
        return out


@dataclass(slots=True)
class _Part:
    """Sequences of the batch that are attended in one call, and their tokens (None: all)."""

    members: list[int]
    tokens: Tensor | None
    probs: bool
    index: _Index


class _Index:
    """The layer tables of some sequences."""

    def __init__(self, fmt: KVFormat, tables: Sequence[PageTable], q_lens: Sequence[int], device: torch.device) -> None:
        self._q_starts_cpu = np.cumsum([0, *q_lens]).tolist()
        self._max_q_len = max(q_lens)
        rows, row_of, offset, self._layer_offset, kv_lens = _read_index(fmt, tables, q_lens)
        self._kv_lens_cpu: list[list[list[int]]] = kv_lens.tolist()
        self._max_kv_lens: list[int] = kv_lens.max(axis=(1, 2)).tolist()
        self._rows, self._row_of, self._offset, self._kv_lens, self._q_starts = (
            torch.from_numpy(array).to(device)
            for array in (rows, row_of, offset, kv_lens, np.array(self._q_starts_cpu, np.int32))
        )
        self._layer_offset_on_device = torch.from_numpy(self._layer_offset).to(device)

    def table(self, layer: int) -> LayerTable:
        """The ragged batch as one layer's attention sees it."""
        at = layer if len(self._rows) > 1 else 0
        return LayerTable(
            rows=self._rows[at],
            row_of=self._row_of,
            offset=self._offset + self._layer_offset_on_device * layer,
            kv_lens=self._kv_lens[at],
            q_starts=self._q_starts,
            q_starts_cpu=self._q_starts_cpu,
            max_q_len=self._max_q_len,
            max_kv_len=self._max_kv_lens[at],
            kv_lens_cpu=self._kv_lens_cpu[at],
        )


def _read_index(
    fmt: KVFormat, tables: Sequence[PageTable], q_lens: Sequence[int]
) -> tuple[Int32s, Int32s, Int32s, Int32s, Int32s]:
    """rows [L or 1, R, W], row_of [S, H], offset [S, H] in layer 0, its step from layer to layer [S, 1],
    kv_lens [L or 1, S, H].
    """
    num_seqs, num_heads = len(tables), fmt.num_kv_heads
    num_layers = 1 if all(table.granularity is Granularity.SEQUENCE for table in tables) else fmt.num_layers
    longest = max(int(table.lens.max()) + num for table, num in zip(tables, q_lens, strict=True))
    width = max(1, fmt.blocks_for(longest))
    widths = [min(width, table.bases.shape[1]) for table in tables]
    num_rows = [num_heads if table.granularity is Granularity.HEAD else 1 for table in tables]
    firsts = np.cumsum([0, *num_rows]).tolist()
    rows = np.zeros((num_layers, firsts[-1], width), np.int32)
    row_of = np.empty((num_seqs, num_heads), np.int32)
    offset = np.zeros((num_seqs, num_heads), np.int32)
    layer_offset = np.zeros((num_seqs, 1), np.int32)
    kv_lens = np.empty((num_layers, num_seqs, num_heads), np.int32)
    heads = np.arange(num_heads, dtype=np.int32)
    for s, (table, num, first, wide) in enumerate(zip(tables, q_lens, firsts, widths, strict=False)):
        bases = table.bases[:, :wide]
        if table.granularity is Granularity.SEQUENCE:
            rows[:, first, :wide] = bases[0]
            row_of[s], offset[s], layer_offset[s] = first, heads, num_heads
            kv_lens[:, s] = table.lens[0] + num
        elif table.granularity is Granularity.LAYER:
            rows[:, first, :wide] = bases
            row_of[s], offset[s] = first, heads
            kv_lens[:, s] = table.lens[:, None] + np.int32(num)
        else:
            rows[:, first : first + num_heads, :wide] = bases.reshape(num_layers, num_heads, wide)
            row_of[s] = first + heads
            kv_lens[:, s] = table.lens.reshape(num_layers, num_heads) + np.int32(num)
    return rows, row_of, offset, layer_offset, kv_lens


def _write_index(fmt: KVFormat, tables: Sequence[PageTable], q_lens: Sequence[int]) -> tuple[Int32s, Int32s]:
    """page_ids and slots [L or 1, T, H] of the step's tokens; with one layer only, the ids are those of layer 0 and
    grow by H per layer.
    """
    page_size, num_heads = np.int32(fmt.page_size), fmt.num_kv_heads
    exact = all(table.granularity is Granularity.SEQUENCE for table in tables)
    num_layers = 1 if exact else fmt.num_layers
    page_ids = np.empty((num_layers, sum(q_lens), num_heads), np.int32)
    slots = np.empty_like(page_ids)
    all_pages = np.arange(num_layers * num_heads, dtype=np.int32).reshape(num_layers, 1, num_heads)
    start = 0
    for table, num in zip(tables, q_lens, strict=True):
        stop = start + num
        steps: Int32s = np.arange(num, dtype=np.int32)
        at = table.lens[:, None] + steps  # [rows, num]
        if table.granularity is Granularity.SEQUENCE:
            page_ids[:, start:stop] = table.bases[0, at[0] // page_size][:, None] + all_pages
            slots[:, start:stop] = (at[0] % page_size)[:, None]
        else:
            bases = np.take_along_axis(table.bases, (at // page_size).astype(np.intp), axis=1)
            shape = (num_layers, -1, num)  # [L, 1 or H, num]
            within = all_pages[:1] if table.granularity is Granularity.LAYER else np.int32(0)
            page_ids[:, start:stop] = bases.reshape(shape).swapaxes(1, 2) + within
            slots[:, start:stop] = (at % page_size).reshape(shape).swapaxes(1, 2)
        start = stop
    return page_ids, slots
