"""Decoding over chosen pages of offloaded KV: what the window does not have of them is read, the rest stays away.

Papers: InfiniGen (arXiv:2406.19707) and ShadowKV (arXiv:2410.21465) fetch what is chosen; here every page of a head
counts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...kernels.ops import LayerTable, kv_write, paged_attention
from .groups import Member, of_heads
from .storage import OffloadedStorage, TierError

if TYPE_CHECKING:
    from ..choices import Chooser


def attend_chosen(
    storage: OffloadedStorage,
    layer: int,
    members: Sequence[Member],
    choosers: Sequence[Chooser],
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    options: Mapping[str, object],
    failures: dict[int, str],
) -> Tensor:
    """q ``[S, Hq, k_dim]`` of one token of each member, k ``[S, H, k_dim]``, v alike -> ``[S, Hq, v_dim]``. Members
    whose pages do not come are added to ``failures``, with the reason.
    """
    scale = options["scale"]
    assert isinstance(scale, float | int)
    chosen = [np.zeros((k.shape[1], 0), np.int64)] * len(members)
    lens = np.zeros((len(members), k.shape[1]), np.int32)
    for s, (member, chooser) in enumerate(zip(members, choosers, strict=True)):
        try:
            ids, slots = chooser.choose(layer, q[s], float(scale))
        except TierError as error:
            failures.setdefault(member.index, str(error))
            continue
        chosen[s], lens[s] = ids.numpy().astype(np.int64), slots.numpy()
    if all(ids.shape[1] for ids in chosen) and sum(ids.size for ids in chosen) <= storage.hot.room:  # as a rule
        found, lost = _attend(storage, layer, chosen, lens, q, [k, v], options)
        for s, why in lost.items():
            failures.setdefault(members[s].index, why)
        return found
    out = q.new_zeros(len(members), q.shape[1], storage.fmt.v_dim or int(options["v_dim"]))  # type: ignore[call-overload]
    per_head = q.shape[1] // k.shape[1]
    for mine, heads in _shares(chosen, storage.hot.room):
        queries = slice(heads.start * per_head, heads.stop * per_head)
        parts = [None if x is None else x[mine, heads].contiguous() for x in (k, v)]
        found, lost = _attend(
            storage,
            layer,
            [chosen[s][heads] for s in mine],
            lens[mine, heads],
            q[mine, queries],
            parts,
            of_heads(options, queries),
        )
        out[mine, queries] = found
        for s, why in lost.items():
            failures.setdefault(members[mine[s]].index, why)
    return out


def _shares(chosen: Sequence[np.ndarray], room: int) -> Iterator[tuple[list[int], slice]]:
    """Sequences (by number) and heads whose pages fit together; those that chose none are left out."""
    whole, held = list[int](), 0
    for s, ids in enumerate(chosen):
        num_heads, width = ids.shape
        if not width:
            continue
        if ids.size > room:
            at_once = room // width
            for first in range(0, num_heads, at_once):
                yield [s], slice(first, min(num_heads, first + at_once))
            continue
        if whole and held + ids.size > room:
            yield whole, slice(0, num_heads)
            whole, held = [], 0
        whole, held = [*whole, s], held + ids.size
    if whole:
        yield whole, slice(0, chosen[whole[0]].shape[0])


def _attend(
    storage: OffloadedStorage,
    layer: int,
    chosen: list[np.ndarray],
    lens: np.ndarray,
    q: Tensor,
    new: list[Tensor | None],
    options: Mapping[str, object],
) -> tuple[Tensor, dict[int, str]]:
    """One call of attention; which of the sequences lost pages, and why."""
    fmt, (num, heads) = storage.fmt, lens.shape
    columns = -(-lens // fmt.page_size)  # [S, h] pages that each head reads
    rows = np.zeros((num, heads, max(ids.shape[1] for ids in chosen)), np.int64)
    for s, ids in enumerate(chosen):
        rows[s, :, : ids.shape[1]] = ids
    inside = np.arange(rows.shape[2]) < columns[..., None]
    ids = rows[inside]
    where = np.arange(len(ids))
    if num > 1:  # sequences may share pages; heads never do
        ids, where = np.unique(ids, return_inverse=True)
    places, missing = storage.hot.take(layer, ids)
    storage.counters.pages_asked += len(ids)
    bad = storage.fetch(ids[missing], places[missing])
    at = np.zeros(rows.shape, np.int32)
    at[inside] = places[where]
    last = (*np.ogrid[:num, :heads], columns - 1)
    open_ids, open_at = rows[last], at[last]
    k, v = new
    assert k is not None
    slots = torch.from_numpy(((lens - 1) % fmt.page_size).astype(np.int32))
    kv_write(k, v, storage.pages, storage.layout, torch.from_numpy(open_at), slots)
    unwritten = storage.put_back(open_ids.ravel(), open_at.ravel())
    out = paged_attention(q, storage.pages, storage.layout, _table(at, lens), **options)  # type: ignore[arg-type]
    if not bad and not unwritten:
        return out, {}
    storage.hot.forget(np.array([*bad, *unwritten], np.int64))
    lost = {}
    for failed, writes in ((bad, False), (unwritten, True)):
        for page, number in failed.items():
            for s in np.flatnonzero((rows == page).any((1, 2))).tolist():
                lost.setdefault(s, storage.tier.why(number, writes=writes))
    return out, lost


def _table(at: np.ndarray, lens: np.ndarray) -> LayerTable:
    """A row of single pages for every (sequence, head), each sequence bringing one token."""
    num, heads, width = at.shape
    pairs = torch.arange(num * heads, dtype=torch.int32).view(num, heads)
    return LayerTable(
        rows=torch.from_numpy(at.reshape(num * heads, width)),
        row_of=pairs,
        offset=torch.zeros_like(pairs),
        kv_lens=torch.from_numpy(np.ascontiguousarray(lens)),
        q_starts=torch.arange(num + 1, dtype=torch.int32),
        q_starts_cpu=list(range(num + 1)),
        max_q_len=1,
        max_kv_len=int(lens.max()),
        kv_lens_cpu=lens.tolist(),
    )
