"""Keys and values of one sequence as plain tensors: how policies look at them, and put merged ones back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops import hash_slots as page_hashes
from ..kernels.ops import kv_write, weigh_slots
from ..kernels.ops import read_slots as page_slots
from ..kernels.ops import window_sums as sums_of_window
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
    storage: PageStorage, table: PageTable, layers: range, first: Tensor, count: int, values: bool = True
) -> tuple[Tensor, Tensor]:
    """As ``read_slots``, of several layers: ``count`` slots of each head from ``first`` int64 ``[L, H]`` on, which come
    as ``[l, H, count, D]``; V without columns where no ``values`` are asked for. The head's row must reach that far.
    """
    heads = table.fmt.num_kv_heads
    ids = _rows_of_heads(storage, table, slice(layers.start * heads, layers.stop * heads))
    start = first[layers.start : layers.stop].flatten()
    found = page_slots(storage.pages, storage.layout, ids, start, count, values=values)
    k, v = (x.unflatten(0, (len(layers), heads)) for x in found)
    return k, v


def hash_slots(
    storage: PageStorage, table: PageTable, first: Tensor, count: int, planes: Tensor, hashes: Tensor
) -> None:
    """Hashes of the keys of ``count`` slots of each head from ``first`` int64 ``[L, H]`` on go to their places in
    ``hashes`` ``[L, H, C]``; see ``ops.hash_slots``.
    """
    ids = _rows_of_heads(storage, table, slice(None))
    page_hashes(storage.pages, storage.layout, ids, first.view(-1), count, planes, hashes)


def weigh(
    storage: PageStorage, table: PageTable, pairs: Tensor, first: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of slots times weights ``[n, count]``, K float32 ``[n, Dk]`` and V: of each head in ``pairs`` int64 ``[n]``
    (numbered through all layers) those from ``first`` int64 ``[n]`` on.
    """
    rows = _rows_of_heads(storage, table, pairs.cpu().numpy())
    return weigh_slots(storage.pages, storage.layout, rows, first, weights)


def window_sums(
    storage: PageStorage, table: PageTable, lens: Tensor, positions: Tensor, queries: Tensor, num_seen: int,
    scale: float, soft_cap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What slots received from the newest queries, how many wanted them, and the most that one gave; see
    ``ops.window_sums``. All but the table may be there n times, side by side: [n * L, …].
    """
    heads = table.fmt.num_layers * table.fmt.num_kv_heads
    rows = _rows_of_heads(storage, table, slice(None) if table.run == 1 else np.arange(heads))
    rows = rows.repeat(lens.numel() // heads, 1)
    return sums_of_window(
        storage.pages, storage.layout, rows, lens, positions, queries, num_seen, scale=scale, soft_cap=soft_cap
    )


def _rows_of_heads(storage: PageStorage, table: PageTable, which: slice | np.ndarray) -> Tensor:
    """int32 ``[n, W]``: the pages of these heads, numbered through all layers."""
    if table.run == 1:
        ids = table.bases[which]
    else:
        rows, offsets = (x.ravel()[which] for x in _places(table))
        ids = table.bases[rows] + offsets[:, None].astype(np.int32)
    return torch.from_numpy(ids).to(storage.device)


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
    run = table.run
    pairs = layers.cpu().numpy() * table.fmt.num_kv_heads + heads.cpu().numpy()
    columns, inside = np.divmod(slots.cpu().numpy(), table.fmt.page_size)
    places = table.bases[pairs // run, columns] + (pairs % run).astype(np.int32)
    ids, at = (torch.from_numpy(x).to(storage.device)[:, None] for x in (places, inside.astype(np.int32)))
    dtype = torch.float32 if not storage.layout.dtype.is_floating_point else storage.layout.dtype
    k, v = k[:, None].to(dtype).contiguous(), v[:, None].to(dtype).contiguous()
    kv_write(k, v if table.fmt.v_dim else None, storage.pages, storage.layout, ids, at)
