"""Keys and values of one sequence as plain tensors: how policies look at them, and put merged ones back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops import kv_write
from ..kernels.ops._paged import gather
from .storage import PageStorage
from .table import PageTable


def read_slots(storage: PageStorage, table: PageTable, layer: int, num_slots: int) -> tuple[Tensor, Tensor]:
    """K and V of one layer, float32 ``[H, num_slots, Dk]`` and ``[H, num_slots, Dv]``.

    Beyond a head's length stands what its pages hold, or zeros; latent pages (MLA) have V in the first columns of K and
    no columns of their own here.
    """
    heads = table.fmt.num_kv_heads
    rows = [table.row(layer, head) for head in range(heads)]
    most = int(table.lens[rows].max())
    columns = max(1, table.fmt.blocks_for(most))
    ids = torch.tensor([table.offset(layer, head) for head in range(heads)])[:, None] + torch.from_numpy(
        table.bases[rows, :columns].astype("int64")
    )
    k, v = gather(storage.pages, storage.layout, ids.to(storage.device), torch.float32)
    k = _fit(k, num_slots)
    return k, k[..., :0] if v is None else _fit(v, num_slots)


def read_part(
    storage: PageStorage, table: PageTable, layers: range, first: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """As ``read_slots``, of several layers: ``count`` slots of each head from ``first`` int64 ``[L, H]`` on, which come
    as ``[l, H, count, D]``. The head's row must reach that far.
    """
    heads, size = table.fmt.num_kv_heads, table.fmt.page_size
    rows, offsets = (x[layers.start : layers.stop].ravel() for x in _places(table))
    start = first[layers.start : layers.stop].flatten().cpu().numpy()
    columns = start[:, None] // size + np.arange(-(-(count + size - 1) // size))
    ids = table.bases[rows[:, None], np.minimum(columns, table.bases.shape[1] - 1)] + offsets[:, None]
    k, v = gather(storage.pages, storage.layout, torch.from_numpy(ids).to(storage.device), torch.float32)
    at = torch.from_numpy((start % size)[:, None] + np.arange(count)).to(storage.device)
    rows_of = torch.arange(len(rows), device=storage.device)[:, None]
    k = k[rows_of, at].view(len(layers), heads, count, -1)
    return k, k[..., :0] if v is None else v[rows_of, at].view(len(layers), heads, count, -1)


def _places(table: PageTable) -> tuple[np.ndarray, np.ndarray]:
    """Row of the table and offset within its runs of every kv-head: int64 ``[L, H]``."""
    pairs = np.arange(table.fmt.num_layers * table.fmt.num_kv_heads).reshape(-1, table.fmt.num_kv_heads)
    return pairs // table.run, pairs % table.run


def _fit(x: Tensor, num_slots: int) -> Tensor:
    missing = num_slots - x.shape[1]
    return x[:, :num_slots] if missing <= 0 else torch.nn.functional.pad(x, (0, 0, 0, missing))


def write_slots(
    storage: PageStorage, table: PageTable, layers: Tensor, heads: Tensor, slots: Tensor, k: Tensor, v: Tensor
) -> None:
    """New content for single slots: layers, heads and slots int64 ``[n]``, k ``[n, Dk]``, v ``[n, Dv]``. The pages must
    belong to this sequence alone.
    """
    size = table.fmt.page_size
    rows, offsets = _places(table)
    pairs = layers.cpu().numpy(), heads.cpu().numpy()
    places = table.bases[rows[pairs], slots.cpu().numpy() // size] + offsets[pairs]
    ids = torch.from_numpy(places.astype(np.int32)).to(storage.device)[:, None]
    at = (slots % size).to(torch.int32)[:, None]
    dtype = torch.float32 if not storage.layout.dtype.is_floating_point else storage.layout.dtype
    k, v = k[:, None].to(dtype).contiguous(), v[:, None].to(dtype).contiguous()
    kv_write(k, v if table.fmt.v_dim else None, storage.pages, storage.layout, ids, at)
