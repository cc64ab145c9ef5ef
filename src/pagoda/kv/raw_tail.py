"""The raw tokens of one sequence beside its encoded pages: they lie here until their pages are encoded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.types import KVFormat
from ..kernels.ops import page_codes
from ..kernels.page_code import PageCode, RawSlots
from .pages import Int32s
from .policies._windowed import Learned, Seen, WindowedCodec
from .storage import PageStorage
from .table import PageTable

LEAST_ROOM = 256


class RawTail:
    """k ``[L, H, capacity, k_dim]``, v ``[L, H, capacity, v_dim]``; the first is slot ``start``, a multiple of the page
    size, the same in every head. ``capacity`` is what it has room for at first, and goes back to after an act.
    """

    def __init__(self, fmt: KVFormat, capacity: int) -> None:
        self._fmt, self._usual, self.start = fmt, capacity, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.num_bytes = self.room = 0
        self.edits = 0  # how often it lay elsewhere, or began at another slot

    def _hold(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v, self.room, self.num_bytes = k, v, k.shape[2], k.nbytes + v.nbytes
        self.edits += 1

    def fork(self) -> RawTail:
        """An independent copy."""
        twin = RawTail(self._fmt, self._usual)
        twin.start = self.start
        if self.k is not None and self.v is not None:
            twin._hold(self.k.clone(), self.v.clone())
        return twin

    def make_room(self, first: int, num: int, dtype: torch.dtype, device: torch.device) -> None:
        """For slots from number ``first`` on."""
        if self.k is None:
            self.start = first  # those before were found encoded
        self._make_room(first - self.start + num, dtype, device)

    def put(self, layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """Slots from number ``first`` on: k ``[n, H, k_dim]``, v."""
        self.make_room(first, len(k), k.dtype, k.device)
        assert self.k is not None
        assert self.v is not None
        begin, end = first - self.start, first - self.start + len(k)
        self.k[layer, :, begin:end] = k.transpose(0, 1)
        self.v[layer, :, begin:end] = v.transpose(0, 1)

    def raw(self, layer: int, start: int) -> RawSlots:
        """A layer's slots from number ``start`` on."""
        assert self.k is not None
        assert self.v is not None
        return RawSlots(self.k[layer], self.v[layer], start, start - self.start)

    def place(self, start: int) -> tuple[int, int, int, int]:
        """The same of all layers, as a step's program takes it: addresses of k and v, ``start``, room."""
        assert self.k is not None
        assert self.v is not None
        skip = start - self.start
        k, v = (x.data_ptr() + skip * x.shape[3] * x.itemsize for x in (self.k, self.v))
        return k, v, start, self.room

    def encode_layer(self, layer: int, start: int, num: int, pages: Tensor, ids: Tensor, code: PageCode) -> None:
        """``num`` slots from number ``start`` on go to the layer's pages ``ids`` [H, n]."""
        assert self.k is not None
        assert self.v is not None
        k, v = (x[layer, :, start - self.start :][:, :num] for x in (self.k, self.v))
        page_codes(pages, ids, k, v, code)

    def held(self, layer: int, num_slots: int) -> tuple[Tensor, Tensor]:
        """float32 ``[H, num_slots, dim]`` of a sequence that has nothing encoded."""
        assert self.start == 0
        assert self.k is not None
        assert self.v is not None
        return self.k[layer, :, :num_slots].float(), self.v[layer, :, :num_slots].float()

    def keep(self, keep: Tensor) -> None:
        """Only these slots stay, as many in every head, and move up: bool ``[N]``, ``[L, N]`` or ``[L, H, N]``."""
        assert self.start == 0
        assert self.k is not None
        assert self.v is not None
        if keep.dim() < 3:
            keep = keep[None, None] if keep.dim() == 1 else keep[:, None]
        keep = keep.expand(*self.k.shape[:2], -1)
        num = int(keep[0, 0].sum())
        order = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[..., :num, None]
        room = self._room_for(num)
        kept = (x.gather(2, order.expand(-1, -1, -1, x.shape[-1])) for x in (self.k, self.v))
        self._hold(*(torch.nn.functional.pad(x, (0, 0, 0, room - num)) for x in kept))

    def encode(
        self, codec: WindowedCodec, storage: PageStorage, table: PageTable, learned: Learned, queries: Tensor | None,
        scale: float,
    ) -> None:  # fmt: skip
        """An act: pages that lie whole before the window are written."""
        held, size = int(table.lens[0]), storage.fmt.page_size
        num = codec.num_encoded(held, size) - self.start
        if num <= 0:
            return
        assert self.k is not None
        assert self.v is not None
        ids = torch.from_numpy(page_ids(table, self.start // size, (self.start + num) // size)).to(storage.device)
        if codec.plain:
            of_heads = {name: x.flatten(0, 1) for name, x in learned.items()}
            code = codec.code(size, self._fmt.k_dim, self._fmt.v_dim, of_heads)
            page_codes(storage.pages, ids.flatten(0, 1), self.k.flatten(0, 1), self.v.flatten(0, 1), code)
        else:
            raw = self.k[:, :, : held - self.start].float()
            parts = [x[:, :, :num].float().unflatten(2, (num // size, size)) for x in (self.k, self.v)]
            pages = codec.encode(*parts, Seen(learned, raw, queries, scale))  # [L, H, n, bytes]
            storage.pages[ids.flatten(), : pages.shape[-1]] = pages.flatten(0, 2)
        self.drop(self.start + num, held)

    def drop(self, start: int, held: int) -> None:
        """Slots before number ``start``, of ``held``, are in encoded pages."""
        num, left = start - self.start, held - start
        if num <= 0:
            return
        assert self.k is not None
        self.start, room = start, max(left, self._usual)
        found = []
        for x in (self.k, self.v):
            assert x is not None
            rest = x[:, :, num : num + left].clone()
            if x.shape[2] > room:  # a chunk of a prompt was here
                x = x.new_zeros(*x.shape[:2], room, x.shape[3])
            x[:, :, :left] = rest
            found.append(x)
        self._hold(*found)

    def _room_for(self, num: int) -> int:
        """The usual room, but not many times what ``num`` need: a window may be wider than a sequence ever gets."""
        return max(num, min(self._usual, max(LEAST_ROOM, 2 * num)))

    def _make_room(self, end: int, dtype: torch.dtype, device: torch.device) -> None:
        old = self.room
        if end <= old:
            return
        found = []
        room = self._room_for(end) if end <= self._usual else end + (end // 4 if old > self._usual else 0)
        for name, dim in (("k", self._fmt.k_dim), ("v", self._fmt.v_dim)):
            shape = self._fmt.num_layers, self._fmt.num_kv_heads, room, dim
            grown = torch.zeros(shape, dtype=dtype, device=device)
            if old:
                grown[:, :, :old] = getattr(self, name)
            found.append(grown)
        self._hold(*found)


def page_ids(table: PageTable, first: int, last: int) -> np.ndarray:
    """int64 ``[L, H, last - first]``: the pages of columns ``first`` … ``last - 1`` of every head."""
    fmt = table.fmt
    heads = np.arange(fmt.pages_per_block).reshape(fmt.num_layers, fmt.num_kv_heads, 1)
    bases: Int32s = table.bases[:, first:last][heads[..., 0] // table.run]
    ids: np.ndarray = bases.astype(np.int64) + heads % table.run
    return ids
