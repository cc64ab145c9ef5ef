"""One step over sequences whose old pages are encoded whole and whose newest tokens lie raw beside them.

Layer by layer the encoded pages of several sequences are decoded at once into pages of numbers
(``kernels.ops.page_numbers``), the raw tokens go into pages after them, and the usual attention runs over both::

    one sequence's numbers   │ decoded page │ decoded page │ … │ raw page │ raw page, partly filled │

What is saved is memory: the numbers of one layer, of as many sequences as fit into ``SCRATCH_BYTES`` (or of one that
does not), live for the time of its attention. A step costs the decoding of all that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..kernels.layout import PageLayout
from ..kernels.ops import kv_write, page_numbers, paged_attention
from .policies._windowed import Learned, WindowedCodec
from .raw_tail import RawTail, page_ids
from .scratch import scratch_table
from .storage import PageStorage
from .table import PageTable
from .watching import Received

SCRATCH_BYTES = 2 << 20  # what stays in the second-level cache between decoding and attention


class WindowView:
    """The KV view (see ``models.layers.step.KVView``). Sequence s brings ``q_lens[s]`` tokens, side by side. ``codecs``
    may have windows of their own, but read the same pages; ``learned``: what they were calibrated to, ``[L, H, …]``.
    ``breaks`` is told which of them raised, if one does: another goes on in its place, and if there is none, the rest
    of the step is worth nothing for any sequence.
    """

    def __init__(
        self,
        storage: PageStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        codecs: Sequence[WindowedCodec],
        tails: Sequence[RawTail],
        learned: Learned,
        tap: Callable[[int, Tensor, Mapping[str, object]], None] | None = None,
        breaks: Callable[[WindowedCodec, Exception], None] | None = None,
    ) -> None:
        self._storage, self._learned, self._tap, self._breaks = storage, learned, tap, breaks
        self._codecs = list(dict.fromkeys(codecs))  # those that work; all read alike, so the first one reads
        self.received: list[Received] = []
        self.added: list[int] = []
        starts = [0, *accumulate(q_lens)]
        self._parts, members, held = [], list[int](), 0
        slot_bytes = 4 * storage.fmt.num_kv_heads * (storage.fmt.k_dim + storage.fmt.v_dim)
        for s, table in enumerate(tables):
            size = (int(table.lens[0]) + q_lens[s]) * slot_bytes
            if members and held + size > SCRATCH_BYTES:
                self._parts.append(_Part(storage, tables, tails, starts, members))
                members, held = [], 0
            members, held = [*members, s], held + size
        self._parts.append(_Part(storage, tables, tails, starts, members))
        self._scratch: Tensor | None = None

    failures: Mapping[int, str] = MappingProxyType({})
    """Sequences that lost KV: none here (see `offload.view`)."""

    def close(self) -> None:
        """The step is over."""

    def arrays(self) -> None:
        """Every layer calls ``attend``."""

    in_program = True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        """As ``StepView.attend``."""
        if self._tap is not None:
            self._tap(layer, q, options)
        while self._codecs:
            try:
                return self._attend(layer, q, k, v, options)
            except Exception as error:
                if self._breaks is None:
                    raise
                self._breaks(self._codecs.pop(0), error)
        return q.new_zeros(*q.shape[:2], v.shape[2])

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, object]) -> Tensor:
        learned = {name: values[layer] for name, values in self._learned.items()}
        q, k = self._codecs[0].share(q, k, learned)
        outs = []
        for part in self._parts:
            pages, layout = self._numbers(part, layer, k, v, learned)
            mine = slice(part.starts[0], part.starts[-1])
            outs.append(paged_attention(q[mine], pages, layout, part.table, **options))  # type: ignore[arg-type]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _numbers(self, part: _Part, layer: int, k: Tensor, v: Tensor, learned: Learned) -> tuple[Tensor, PageLayout]:
        """Pages of numbers ``[H * pages, elements]`` of everything that the part reads in this layer."""
        fmt = self._storage.fmt
        layout = PageLayout(fmt.page_size, fmt.k_dim, fmt.v_dim, k.dtype)
        if self._scratch is None:  # one for all layers and parts: touching fresh memory costs more than decoding
            self._scratch = k.new_empty(fmt.num_kv_heads * max(p.num_pages for p in self._parts), layout.page_elems)
        pages = self._scratch[: fmt.num_kv_heads * part.num_pages]
        if part.places.numel():
            whole = pages.view(fmt.num_kv_heads, part.num_pages, layout.page_elems)
            keys, values = whole.split([fmt.page_size * fmt.k_dim, fmt.page_size * fmt.v_dim], dim=-1)
            code = self._codecs[0].code(fmt.page_size, fmt.k_dim, fmt.v_dim, learned)
            page_numbers(self._storage.pages, part.ids[layer], part.places, keys, values, code)
        raw = [tail.put(layer, slots, k[rows], v[rows]) for slots, rows, tail in part.raw]
        new_k, new_v = (torch.cat([one.transpose(0, 1) for one in side]) for side in zip(*raw, strict=True))
        kv_write(new_k, new_v, pages, layout, part.raw_ids, part.raw_slots)
        return pages, layout

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """Latent KV has no keys and values of its own to encode."""
        raise AssertionError("refused when the request came in")


class _Part:
    """Sequences that are attended in one call; the index arrays of all layers.

    ids     int64 [L, H, N] encoded pages      places  int64 [N] where their numbers go
    raw     for each sequence: the slots that it holds, the step's rows, the raw tokens
    raw_ids, raw_slots   int32 [T, H] page and slot of every raw token of the part, the step's among them
    """

    def __init__(
        self, storage: PageStorage, tables: Sequence[PageTable], tails: Sequence[RawTail], starts: list[int],
        members: list[int],
    ) -> None:  # fmt: skip
        fmt, at = storage.fmt, 0
        self.starts = starts[members[0] : members[-1] + 2]
        ids, places, rows, lens, raw = [], [], [], [], []
        self.raw: list[tuple[int, slice, RawTail]] = []
        for s in members:
            slots, tail = int(tables[s].lens[0]), tails[s]
            encoded = (slots if tail.k is None else tail.start) // fmt.page_size
            lens.append(slots + starts[s + 1] - starts[s])
            pages = fmt.blocks_for(lens[-1])
            ids.append(page_ids(tables[s], 0, encoded))
            places.append(np.arange(at, at + encoded))
            rows.append(np.arange(at, at + pages, dtype=np.int32))
            raw.append(np.arange((at + encoded) * fmt.page_size, at * fmt.page_size + lens[-1], dtype=np.int32))
            self.raw.append((slots, slice(starts[s], starts[s + 1]), tail))
            at += pages
        self.num_pages = at
        raw_pages, raw_slots = np.divmod(np.concatenate(raw)[:, None], np.int32(fmt.page_size))
        raw_pages = raw_pages + np.arange(fmt.num_kv_heads, dtype=np.int32) * np.int32(at)
        self.raw_ids = torch.from_numpy(raw_pages).to(storage.device)
        self.raw_slots = torch.from_numpy(raw_slots).to(storage.device).expand_as(self.raw_ids).contiguous()
        self.ids = torch.from_numpy(np.concatenate(ids, -1)).to(storage.device)
        self.places = torch.from_numpy(np.concatenate(places)).to(storage.device)
        self.table = scratch_table(
            fmt.num_kv_heads, storage.device, rows, lens, [start - self.starts[0] for start in self.starts], at
        )
