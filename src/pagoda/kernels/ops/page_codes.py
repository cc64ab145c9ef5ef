"""Numbers become pages that are encoded whole: the way back of `ops.page_numbers`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..page_code import PageCode, Side


def page_codes(pages: Tensor, ids: Tensor, keys: Tensor, values: Tensor, code: PageCode) -> None:
    """``page_size`` slots from ``n * page_size`` on of every head, encoded, go to page ``ids[h, n]`` of the storage.

    pages uint8 ``[P, bytes]``, ids int64 ``[H, N]`` (heads of one layer or of several), no page twice; keys
    ``[H, slots, k_dim]``, values alike, with at least N pages of slots, in which slots lie one behind the other. A
    code whose ``encode`` is known; pages have its bytes whoever writes them. N may be 0.
    """
    key = (keys.dtype, pages.device.type, code.kinds, code.k_dim, code.v_dim)
    needs = Needs(pages.device.type, (keys.dtype,), (code.k_dim, code.v_dim), code.kinds)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs)
    run(pages, ids, keys, values, code)


def reference(pages: Tensor, ids: Tensor, keys: Tensor, values: Tensor, code: PageCode) -> None:
    assert code.encode is not None
    num, size = ids.shape[1], code.page_size
    k, v = (x[:, : num * size].float().unflatten(1, (num, size)) for x in (keys, values))
    pages[ids.flatten(), : code.num_bytes] = code.encode(k, v).flatten(0, 1)


_OP = Op("page_codes", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0)}
# Grids of codecs are in tests/kernels/test_page_codes.py, under every instruction set. Here: halves, which only the
# reference encodes.


def _case(make: Make, heads: int, count: int, k_dim: int, v_dim: int) -> dict[str, object]:
    size, num = 4, 2 * 4 * (k_dim + v_dim)

    def encode(k: Tensor, v: Tensor) -> Tensor:
        halves = torch.cat([k.flatten(2), v.flatten(2)], -1).to(torch.bfloat16)
        return halves.view(torch.uint8)

    sides = Side("basis", (0, k_dim)), Side("basis", (2 * size * k_dim, v_dim))
    return {
        "pages": torch.zeros(heads * count + 3, num + 3, dtype=torch.uint8),
        "ids": make.permutation(heads * count + 3)[: heads * count].long().view(heads, count),
        "keys": make.normal(heads, count * size + 5, k_dim),
        "values": make.normal(heads, count * size + 5, v_dim),
        "code": PageCode(size, k_dim, v_dim, num, lambda pages: (pages, pages), sides, encode),
    }


CASES = [
    Case("pages", lambda make: _case(make, 4, 3, 24, 20), ("pages",)),
    Case("none", lambda make: _case(make, 2, 0, 8, 8), ("pages",)),
]
