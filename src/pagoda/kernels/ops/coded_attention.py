"""Attention over pages that were encoded whole, and over the newest slots that lie raw beside them.

    slots of a sequence   │ encoded page │ encoded page │ … │ raw slots, the step's own at their end │

A kernel decodes a page where it multiplies it, so that its numbers are never written to memory. The reference writes
them into pages of numbers first, those of a few sequences at a time, and asks the usual attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op, one_device
from ..layout import PageLayout
from ..page_code import PageCode, RawSlots, Side
from ._scratch import scratch_table
from ._table import LayerTable, layer_table
from .attention import paged_attention
from .kv_write import kv_write
from .page_numbers import page_numbers

SCRATCH_BYTES = 2 << 20  # of the reference: what stays in a cache between decoding and attention


def coded_attention(
    q: Tensor,
    pages: Tensor,
    code: PageCode,
    table: LayerTable,
    raw: Sequence[RawSlots],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """As `ops.paged_attention` with the numbers that ``code`` decodes.

    q ``[T, Hq, k_dim]``; pages uint8 ``[P, bytes]``; ``raw`` of each sequence, of q's dtype, with the slots of this
    step. A sequence's heads are equally long. The result is ``[T, Hq, v_dim]`` in q's dtype.
    """
    used = (window > 0, soft_cap > 0.0, sinks is None, alibi_slopes is None)
    key = (used, q.dtype, pages.device.type, code.kinds, code.k_dim, code.v_dim)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(q, pages, code, table, *used))
    out: Tensor = run(
        q, pages, code, table, raw, scale=scale, window=window, soft_cap=soft_cap, sinks=sinks,
        alibi_slopes=alibi_slopes,
    )  # fmt: skip
    return out


def _needs(
    q: Tensor, pages: Tensor, code: PageCode, table: LayerTable, window: bool, soft_cap: bool, no_sinks: bool,
    no_alibi: bool,
) -> Needs:  # fmt: skip
    used = {"window": window, "soft_cap": soft_cap, "sinks": not no_sinks, "alibi": not no_alibi}
    device = one_device("coded_attention", q=q, pages=pages, table=table.rows)
    options = code.kinds | {name for name, on in used.items() if on}
    return Needs(device, (q.dtype,), (code.k_dim, code.v_dim), options)


def reference(
    q: Tensor, pages: Tensor, code: PageCode, table: LayerTable, raw: Sequence[RawSlots], *, scale: float,
    window: int = 0, soft_cap: float = 0.0, sinks: Tensor | None = None, alibi_slopes: Tensor | None = None,
) -> Tensor:  # fmt: skip
    options = {"scale": scale, "window": window, "soft_cap": soft_cap, "sinks": sinks, "alibi_slopes": alibi_slopes}
    lens = table.kv_lens.cpu() if table.kv_lens_cpu is None else torch.tensor(table.kv_lens_cpu)
    lens = lens.view(table.kv_lens.shape)
    out = q.new_zeros(*q.shape[:2], code.v_dim)
    for members in _groups(lens[:, 0].tolist(), 4 * lens.shape[1] * (code.k_dim + code.v_dim)):
        rows = slice(table.q_starts_cpu[members.start], table.q_starts_cpu[members.stop])
        out[rows] = _attend(q[rows], pages, code, table, lens, raw, members, options)
    return out


def _groups(lens: list[int], slot_bytes: int) -> Iterator[range]:
    """Neighbours whose numbers take no more than SCRATCH_BYTES, or one that does not."""
    first, held = 0, 0
    for s, num in enumerate(lens):
        if s > first and held + num * slot_bytes > SCRATCH_BYTES:
            yield range(first, s)
            first, held = s, 0
        held += num * slot_bytes
    if lens:
        yield range(first, len(lens))


def _attend(
    q: Tensor, pages: Tensor, code: PageCode, table: LayerTable, lens: Tensor, raw: Sequence[RawSlots], members: range,
    options: dict[str, object],
) -> Tensor:  # fmt: skip
    size, heads, device = code.page_size, lens.shape[1], q.device
    ids, places, rows, raw_at, at = [], [], [], [], 0
    new_k, new_v = [], []
    for s in members:
        num, mine = int(lens[s, 0]), raw[s]
        encoded = min(mine.start, num) // size
        own = table.rows[table.row_of[s].long(), :encoded] + table.offset[s][:, None]
        ids.append(own.long())
        places.append(torch.arange(at, at + encoded, device=device))
        num_pages = -(-num // size)
        rows.append(np.arange(at, at + num_pages, dtype=np.int32))
        raw_at.append(torch.arange((at + encoded) * size, at * size + num, dtype=torch.int32, device=device))
        held = num - encoded * size
        new_k.append(mine.k[:, mine.skip :][:, :held].transpose(0, 1))
        new_v.append(mine.v[:, mine.skip :][:, :held].transpose(0, 1))
        at += num_pages
    layout = PageLayout(size, code.k_dim, code.v_dim, q.dtype)
    numbers = q.new_empty(heads * at, layout.page_elems)
    keys, values = numbers.view(heads, at, layout.page_elems).split([size * code.k_dim, size * code.v_dim], dim=-1)
    page_numbers(pages, torch.cat(ids, -1), torch.cat(places), keys, values, code)
    slots = torch.cat(raw_at)[:, None]
    raw_ids = slots // size + torch.arange(heads, dtype=torch.int32, device=device) * at
    raw_slots = (slots % size).expand_as(raw_ids).contiguous()
    kv_write(torch.cat(new_k), torch.cat(new_v), numbers, layout, raw_ids, raw_slots)
    starts = [table.q_starts_cpu[s] - table.q_starts_cpu[members.start] for s in range(members.start, members.stop + 1)]
    own_lens = [int(lens[s, 0]) for s in members]
    own_table = scratch_table(heads, device, rows, own_lens, starts, at)
    return paged_attention(q, numbers, layout, own_table, **options)  # type: ignore[arg-type]


_OP = Op("coded_attention", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2)}


def _case(
    make: Make, q_lens: list[int], kv_lens: list[int], raw: list[int], *, dims: tuple[int, int] = (16, 16),
    page_size: int = 4, heads: tuple[int, int] = (4, 2), per_head: bool = True, shared_blocks: int = 0,
    sinks: bool = False, alibi: bool = False, **options: object,
) -> dict[str, object]:  # fmt: skip
    """Keys on grids of two bits by channel, values on such by token. ``raw``: how many of each sequence's slots are, at
    least.
    """
    table, num_pages = layer_table(
        make, q_lens, kv_lens, page_size=page_size, num_kv_heads=heads[1], per_head=per_head,
        shared_blocks=shared_blocks,
    )  # fmt: skip
    code = grid_code(page_size, *dims)
    starts = [max(0, num - least) // page_size * page_size for num, least in zip(kv_lens, raw, strict=True)]
    room = max((num - start for num, start in zip(kv_lens, starts, strict=True)), default=0) + 3
    beside = [
        RawSlots(*(make.normal(heads[1], room, dim + s)[..., :dim].contiguous() for dim in dims), start)
        for s, start in enumerate(starts)
    ]
    return {
        "q": make.normal(sum(q_lens), heads[0], dims[0]),
        "pages": grid_pages(make, num_pages, code),
        "code": code,
        "table": table,
        "raw": beside,
        "scale": dims[0] ** -0.5,
        "sinks": make.normal(heads[0]) if sinks else None,
        "alibi_slopes": make.normal(heads[0], dtype=torch.float32).abs() if alibi else None,
        **options,
    }


def grid_code(size: int, k_dim: int, v_dim: int) -> PageCode:
    """Two bits a number: keys' scales and minima by channel, values' by slot and 32 columns."""
    widths, groups = (-(-k_dim // 4), -(-v_dim // 4)), -(-v_dim // 32)
    parts = [size * widths[0], 4 * k_dim, size * widths[1], 4 * size * groups]
    starts = [sum(parts[:i]) for i in range(5)]

    def decode(pages: Tensor) -> tuple[Tensor, Tensor]:
        k_codes, k_grid, v_codes, v_grid = pages[..., : starts[4]].split(parts, dim=-1)
        scale, least = _halves(k_grid, 2, k_dim).split(1, dim=-2)
        by_slot = _halves(v_grid, size, 2 * groups)
        steps, floors = (x.repeat_interleave(32, -1)[..., :v_dim] for x in by_slot.split(groups, dim=-1))
        keys, values = _two_bits(k_codes, size, k_dim), _two_bits(v_codes, size, v_dim)
        return keys * scale + least, values * steps + floors

    sides = Side("channel_grid", (2, 0, starts[1])), Side("token_grid", (2, starts[2], starts[3]))
    return PageCode(size, k_dim, v_dim, starts[4], decode, sides)


def grid_pages(make: Make, num_pages: int, code: PageCode) -> Tensor:
    """Random ones, some bytes wider than a page is."""
    size, groups = code.page_size, -(-code.v_dim // 32)
    codes = [make.normal(num_pages, size * -(-dim // 4), dtype=torch.float32) for dim in (code.k_dim, code.v_dim)]
    grids = [make.normal(num_pages, n, dtype=torch.bfloat16) for n in (2 * code.k_dim, 2 * size * groups)]
    parts = [x.mul(1000).to(torch.int32).to(torch.uint8) for x in codes]
    grids = [x / 2 for x in grids]
    both = [parts[0], grids[0].view(torch.uint8), parts[1], grids[1].view(torch.uint8)]
    return torch.nn.functional.pad(torch.cat(both, -1), (0, 8))


def _halves(grid: Tensor, rows: int, columns: int) -> Tensor:
    return grid.contiguous().view(torch.bfloat16).float().unflatten(-1, (rows, columns))


def _two_bits(codes: Tensor, size: int, dim: int) -> Tensor:
    rows = codes.unflatten(-1, (size, -1))
    return torch.stack([rows >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(-2)[..., :dim].float()


_DECODE = ([1, 1, 1, 1], [9, 1, 33, 16], [1, 1, 5, 1])
_LONG = ([1, 1, 1], [301, 700, 260], [2, 37, 1])
_HEADS = {"heads": (14, 2), "dims": (64, 64), "page_size": 16}
_ROWS: dict[str, tuple[tuple[list[int], list[int], list[int]], dict[str, object]]] = {
    "decode": (_DECODE, {}),
    "decode by runs": (_DECODE, {"per_head": False}),
    "decode long": (_LONG, {"page_size": 8}),
    "decode GQA 14:2": (_LONG, _HEADS),
    "decode shared prefix": (_LONG, {**_HEADS, "per_head": False, "shared_blocks": 16}),
    "decode shared prefix, raw in some": (([1, 1, 1], [300, 300, 300], [3, 60, 280]), {**_HEADS, "shared_blocks": 17}),
    "decode, all raw": (([1, 1], [9, 20], [9, 40]), {}),
    "decode odd width": (_DECODE, {"dims": (20, 12)}),
    "decode k wider": (_LONG, {"dims": (96, 32), "page_size": 16}),
    "decode v wider": (_DECODE, {"dims": (32, 128)}),
    "decode pages of 12": (_LONG, {"page_size": 12, "dims": (32, 32)}),
    "decode window": (_LONG, {"window": 70, "page_size": 16}),
    "decode everything": (_LONG, {"window": 70, "soft_cap": 3.0, "sinks": True, "alibi": True}),
    "chunk first": (([9], [9], [9]), {}),
    "chunk later": (([9, 4], [30, 90], [9, 20]), {}),
    "chunk tiled": (([70], [301], [75]), _HEADS),
    "mixed": (([1, 7, 0, 12], [30, 17, 5, 25], [3, 9, 0, 12]), {}),
    "no sequences": (([], [], []), {}),
}
CASES = [
    Case(name, lambda make, lens=lens, options=options: _case(make, *lens, **options))  # type: ignore[misc]
    for name, (lens, options) in _ROWS.items()
]
