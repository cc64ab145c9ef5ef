"""Keys and values of one sequence as plain tensors: how policies look at them, and put merged ones back."""

from __future__ import annotations

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


def _fit(x: Tensor, num_slots: int) -> Tensor:
    missing = num_slots - x.shape[1]
    return x[:, :num_slots] if missing <= 0 else torch.nn.functional.pad(x, (0, 0, 0, missing))


def write_slots(
    storage: PageStorage, table: PageTable, layer: int, heads: Tensor, slots: Tensor, k: Tensor, v: Tensor
) -> None:
    """New content for single slots: heads and slots int64 ``[n]``, k ``[n, Dk]``, v ``[n, Dv]``. The pages must belong
    to this sequence alone.
    """
    size = table.fmt.page_size
    places = [
        int(table.bases[table.row(layer, head), slot // size]) + table.offset(layer, head)
        for head, slot in zip(heads.tolist(), slots.tolist(), strict=True)
    ]
    ids = torch.tensor(places, dtype=torch.int32, device=storage.device)[:, None]
    at = (slots % size).to(torch.int32)[:, None]
    dtype = torch.float32 if not storage.layout.dtype.is_floating_point else storage.layout.dtype
    k, v = k[:, None].to(dtype).contiguous(), v[:, None].to(dtype).contiguous()
    kv_write(k, v if table.fmt.v_dim else None, storage.pages, storage.layout, ids, at)
