"""One step over sequences whose old pages are encoded whole and whose newest tokens lie raw beside them.

Plain torch, in the manner of ``kv.dense``: the pages are decoded, the raw tokens come after them, attention is written
out. What is saved is memory; a step costs the decoding of all that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.types import KVFormat
from .dense import attend_dense
from .policies._windowed import WindowedCodec
from .storage import PageStorage
from .table import PageTable


class RawTail:
    """The raw tokens of one sequence: k ``[L, H, capacity, k_dim]``, v ``[L, H, capacity, v_dim]``, the first being
    token ``start``, a multiple of the page size.
    """

    def __init__(self, fmt: KVFormat, dims: tuple[int, int], capacity: int) -> None:
        self._shape, self._dims = (fmt.num_layers, fmt.num_kv_heads, capacity), dims
        self.start = 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return 0 if self.k is None or self.v is None else self.k.nbytes + self.v.nbytes

    def fork(self) -> RawTail:
        """An independent copy."""
        twin = RawTail.__new__(RawTail)
        twin._shape, twin._dims, twin.start = self._shape, self._dims, self.start
        twin.k, twin.v = (None if x is None else x.clone() for x in (self.k, self.v))
        return twin

    def put(self, layer: int, first: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens from number ``first`` on: k ``[n, H, k_dim]``, v; returns all raw ones ``[H, m, dim]`` up to them."""
        if self.k is None or self.v is None:
            self.k, self.v = (k.new_zeros(*self._shape, dim) for dim in self._dims)
        begin, end = first - self.start, first - self.start + len(k)
        self.k[layer, :, begin:end] = k.transpose(0, 1)
        self.v[layer, :, begin:end] = v.transpose(0, 1)
        return self.k[layer, :, :end], self.v[layer, :, :end]

    def encode(self, codec: WindowedCodec, storage: PageStorage, table: PageTable, until: int) -> None:
        """Raw tokens before number ``until`` go into their pages."""
        num, size = until - self.start, storage.fmt.page_size
        if num <= 0:
            return
        assert self.k is not None
        assert self.v is not None
        parts = [x[:, :, :num].float().unflatten(2, (num // size, size)) for x in (self.k, self.v)]
        pages = codec.encode(*parts)  # [L, H, n, bytes]
        for layer in range(len(pages)):
            ids = page_ids(table, layer, self.start // size, until // size).to(storage.device)
            storage.pages[ids, : pages.shape[-1]] = pages[layer]
        for x in (self.k, self.v):
            x[:, :, : x.shape[2] - num] = x[:, :, num:].clone()
        self.start = until


def page_ids(table: PageTable, layer: int, first: int, last: int) -> Tensor:
    """int64 ``[H, last - first]``: the pages of columns ``first`` … ``last - 1`` of every head."""
    heads = range(table.fmt.num_kv_heads)
    bases = table.bases[[table.row(layer, head) for head in heads], first:last].astype(np.int64)
    return torch.from_numpy(bases + np.array([table.offset(layer, head) for head in heads])[:, None])


class WindowView:
    """The KV view (see ``models.layers.step.KVView``). Sequence s brings ``q_lens[s]`` tokens, side by side."""

    def __init__(
        self,
        storage: PageStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        codecs: Sequence[WindowedCodec],
        tails: Sequence[RawTail],
        tap: Callable[[int, Tensor, Mapping[str, object]], None] | None = None,
    ) -> None:
        self._storage, self._tables, self._q_lens = storage, tables, q_lens
        self._codecs, self._tails, self._tap = codecs, tails, tap
        self.prob_sums: dict[int, dict[int, Tensor]] = {}

    def arrays(self) -> None:
        """Layers come one by one."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        """As ``StepView.attend``."""
        if self._tap is not None:
            self._tap(layer, q, options)
        outs, start = [], 0
        for s, num in enumerate(self._q_lens):
            rows, tail = slice(start, start + num), self._tails[s]
            raw = tail.put(layer, self._tables[s].num_tokens, k[rows], v[rows])
            keys, values = (torch.cat([x, y.float()], 1) for x, y in zip(self._decoded(layer, s), raw, strict=True))
            outs.append(attend_dense(q[rows], keys.transpose(0, 1), values.transpose(0, 1), **options))  # type: ignore[arg-type]
            start += num
        return torch.cat(outs)

    def _decoded(self, layer: int, s: int) -> tuple[Tensor, Tensor]:
        """float32 ``[H, start of the tail, dim]`` of what is encoded."""
        fmt, codec = self._storage.fmt, self._codecs[s]
        ids = page_ids(self._tables[s], layer, 0, self._tails[s].start // fmt.page_size).to(self._storage.device)
        num_bytes = codec.page_bytes(fmt.page_size, fmt.k_dim, fmt.v_dim)
        pages = self._storage.pages[ids][..., :num_bytes]
        k, v = codec.decode(pages, fmt.page_size, fmt.k_dim, fmt.v_dim)
        return k.flatten(1, 2), v.flatten(1, 2)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """Latent KV has no keys and values of its own to encode."""
        raise AssertionError("refused when the request came in")
