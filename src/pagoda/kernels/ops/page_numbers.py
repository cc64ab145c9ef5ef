"""Pages that were encoded whole become numbers again, to be attended to."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..page_code import PageCode, Side


def page_numbers(pages: Tensor, ids: Tensor, places: Tensor, keys: Tensor, values: Tensor, code: PageCode) -> None:
    """Page ``ids[h, n]`` of the storage, decoded, goes to ``keys[h, places[n]]`` and ``values[h, places[n]]``.

    pages uint8 ``[P, bytes]``, ids int64 ``[H, N]``, places int64 ``[N]``; keys ``[H, M, page_size * k_dim]``, values
    alike, float32 or bfloat16, their last dimension contiguous. N may be 0.
    """
    kinds = code.kinds
    key = (keys.dtype, pages.device.type, kinds, code.k_dim, code.v_dim)
    needs = Needs(pages.device.type, (keys.dtype,), (code.k_dim, code.v_dim), kinds)
    run = _OP.chosen.get(key) or _OP.resolve(key, needs)
    run(pages, ids, places, keys, values, code)


def reference(pages: Tensor, ids: Tensor, places: Tensor, keys: Tensor, values: Tensor, code: PageCode) -> None:
    if places.numel():
        found = code.decode(pages[ids][..., : code.num_bytes])
        for target, decoded in zip((keys, values), found, strict=True):
            target[:, places] = decoded.flatten(-2).to(target.dtype)


_OP = Op("page_numbers", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0)}
# What a page of a kind holds is its codec's business: tests/engine/test_windowed_codecs.py has every codec of the
# registry here, under every instruction set. The case is one that needs no codec.


def _case(make: Make, count: int, k_dim: int = 24, v_dim: int = 20) -> dict[str, object]:
    """Keys and values as bfloat16."""
    size, num = 4, 2 * 4 * (k_dim + v_dim)
    halves = make.normal(9, size * (k_dim + v_dim), dtype=torch.bfloat16)

    def decode(encoded: Tensor) -> tuple[Tensor, Tensor]:
        numbers = encoded.contiguous().view(torch.bfloat16).float()
        k, v = numbers.split([size * k_dim, size * v_dim], dim=-1)
        return k.unflatten(-1, (size, k_dim)), v.unflatten(-1, (size, v_dim))

    sides = Side("basis", (0, k_dim)), Side("basis", (2 * size * k_dim, v_dim))
    return {
        "pages": torch.nn.functional.pad(halves.view(torch.uint8), (0, 3)),
        "ids": make.permutation(9)[: 2 * count].long().view(2, count),
        "places": make.permutation(5)[:count].long(),
        "keys": make.normal(2, 5, size * k_dim),
        "values": make.normal(2, 5, size * v_dim),
        "code": PageCode(size, k_dim, v_dim, num, decode, sides),
    }


CASES = [
    Case("pages", lambda make: _case(make, 4), ("keys", "values")),
    Case("none", lambda make: _case(make, 0), ("keys", "values")),
    Case("other dims", lambda make: _case(make, 3, 13, 64), ("keys", "values")),
]
