"""One step over sequences whose old pages are encoded whole and whose newest tokens lie raw beside them.

    one sequence   │ encoded page │ encoded page │ … │ raw slots (`raw_tail`), the step's own behind them │

Attention decodes pages while it multiplies them (``kernels.ops.coded_attention``), in a step's program or layer by
layer. Where pages are encoded within a step, a chunk is several parts, each a sequence to attention:

    a chunk        │ part 0 │ part 1 │ part 2 │        part 1 reads as codes what was raw to part 0, …
                            ^ acts   ^

In each layer all parts' slots are written, then pages are encoded, then all parts attend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.layout import PageLayout
from ..kernels.ops import LayerTable, coded_attention
from ..kernels.page_code import PageCode
from ..kernels.step import CodedStep, QueryRings, StepArrays
from .page_codes import PageCodes
from .policies._windowed import WindowedCodec
from .raw_tail import RawTail, page_ids
from .step_index import StepIndex
from .storage import PageStorage
from .table import PageTable
from .watching import Received, Tap


@dataclass(frozen=True, slots=True)
class _Part:
    """``num`` tokens of a sequence, ``before`` of the chunk before them. Slots before ``start`` are codes to them;
    ``encoded`` slots from there on are to the next part.
    """

    seq: int
    num: int
    before: int
    start: int
    encoded: int


class WindowView:
    """The KV view (see ``models.layers.step.KVView``). Sequence s brings ``q_lens[s]`` tokens, side by side, of a model
    that computes in ``dtype``. ``codecs`` may have windows of their own, but read the same pages, as ``codes`` says.
    ``encoders``: of each sequence the codec that encodes its pages in this step, or None: somebody else does, between
    steps. ``wide``: as `StepView`. ``breaks`` is told which codec raised, if one does: another goes on in its place,
    and if there is none, the rest of the step is worth nothing for any sequence.
    """

    def __init__(
        self,
        storage: PageStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        codecs: Sequence[WindowedCodec],
        tails: Sequence[RawTail],
        codes: PageCodes,
        dtype: torch.dtype,
        tap: Tap | None = None,
        encoders: Sequence[WindowedCodec | None] = (),
        breaks: Callable[[WindowedCodec, Exception], None] | None = None,
        wide: Sequence[bool] | None = None,
    ) -> None:
        self._storage, self._codes, self._dtype, self._tap, self._breaks = storage, codes, dtype, tap, breaks
        self._codecs = list(dict.fromkeys(codecs))  # those that work; all read alike, so the first one reads
        self._tables, self._tails, self._q_lens = tables, tails, q_lens
        self._held = [int(table.lens[0]) for table in tables]  # every head of a sequence is equally long
        for tail, held, num in zip(tails, self._held, q_lens, strict=True):
            tail.make_room(held, num, dtype, storage.device)
        self._edits = [tail.edits for tail in tails]
        self._left = min(
            (tail.room - (h - tail.start) - 1 for tail, h in zip(tails, self._held, strict=True)), default=0
        )
        self._parts = self._divide(encoders or [None] * len(tables))
        of = [tables[part.seq] for part in self._parts]
        before = [part.before for part in self._parts]
        self._wide = None if wide is None else [wide[part.seq] for part in self._parts]
        self._index = StepIndex(storage.fmt, of, [part.num for part in self._parts], before, self._wide)
        self._arrays: StepArrays | None = None
        self.received: list[Received] = []
        self.added: list[int] = []

    def _divide(self, encoders: Sequence[WindowedCodec | None]) -> list[_Part]:
        parts, size = [], self._storage.fmt.page_size
        for seq, (tail, held, num, encoder) in enumerate(
            zip(self._tails, self._held, self._q_lens, encoders, strict=True)
        ):
            before, start = 0, tail.start
            for count, encoded in [(num, 0)] if encoder is None else encoder.parts(held, num, start, size):
                parts.append(_Part(seq, count, before, start, encoded))
                before, start = before + count, start + encoded
        return parts

    def follow(self, tables: Sequence[PageTable], tails: Sequence[RawTail]) -> bool:
        """Becomes, in place, the view of the step after its own: the same sequences, one token of each, which nobody
        watches and in which no page is encoded. False where it cannot, and then it is of no use any more.
        """
        self._left -= 1
        if self._left < 0 or self._edits != [tail.edits for tail in tails] or not self._index.follow(tables):
            return False
        self._held, self._tails = [held + 1 for held in self._held], tails
        return True

    @property
    def may_be_followed(self) -> bool:
        """Whether it is of decode steps that did nothing else."""
        alone = self._tap is None and len(self._codecs) > 0 and self._wide is None
        return alone and all(part.num == 1 and not part.encoded for part in self._parts)

    failures: Mapping[int, str] = MappingProxyType({})
    """Sequences that lost KV: none here (see `offload.view`)."""

    def close(self) -> None:
        """The step is over. A view may go on (`WindowViews`), but holds nothing that sequences remember."""
        self._tails = ()

    in_program = True

    def arrays(self) -> StepArrays | None:
        """As ``StepView.arrays``; None where every layer calls ``attend``: the codec has something to say in each."""
        if self._arrays is not None:
            return self._arrays
        fmt, sides = self._storage.fmt, self._sides()
        if sides is None:
            return None
        if any(part.encoded for part in self._parts) and not sides.can_write(self._dtype):
            return None
        numbers = np.array([(*self._tails[p.seq].place(p.start), p.encoded) for p in self._parts], np.int64).T.copy()
        rings = None if self._tap is None else self._tap.rings()
        if self._tap is not None and rings is None:
            return None
        queries = None if rings is None else self._spread(rings)
        nowhere = torch.empty(1, int(self._index.starts[-1]), 0, dtype=torch.int32)  # raw slots are in no page
        arrays = StepArrays(
            self._storage.pages,
            PageLayout(fmt.page_size, fmt.k_dim, fmt.v_dim, self._dtype),
            *self._index.tensors,
            nowhere,
            nowhere,
            queries=queries,
            coded=CodedStep(sides.native, *numbers),
            wide=self._index.wide,
        )
        if queries is None:
            self._arrays = arrays
        return arrays

    def _sides(self) -> Any:
        if self._storage.device.type != "cpu" or not self._codecs:
            return None
        try:
            return self._codes.sides(self._codecs[0])
        except Exception:  # which ``attend`` will see again, and name its codec
            return None

    def _spread(self, rings: QueryRings) -> QueryRings:
        """By parts: whose queries are remembered is one."""
        if len(self._parts) == len(self._tails):
            return rings
        of = [part.seq for part in self._parts]
        assert not any(rings.nums[part.seq] for part in self._parts if part.num < self._q_lens[part.seq])
        return QueryRings(rings.rings[of], rings.widths[of], rings.firsts[of], rings.nums[of])

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
        codec = self._codecs[0]
        if codec.shares:
            q, k = codec.share(q, k, self._codes.learned_of(layer))
        code, at = self._codes.of(codec, layer), 0
        for tail, held, num in zip(self._tails, self._held, self._q_lens, strict=True):
            tail.put(layer, held, k[at : at + num], v[at : at + num])
            at += num
        for part in self._parts:
            if part.encoded:
                self._encode(layer, part, code)
        raw = [self._tails[part.seq].raw(layer, part.start) for part in self._parts]
        return coded_attention(q, self._storage.pages, code, self._table(layer), raw, **options)  # type: ignore[arg-type]

    def _encode(self, layer: int, part: _Part, code: PageCode) -> None:
        size, storage = self._storage.fmt.page_size, self._storage
        first, last = part.start // size, (part.start + part.encoded) // size
        ids = torch.from_numpy(page_ids(self._tables[part.seq], first, last)[layer]).to(storage.device)
        self._tails[part.seq].encode_layer(layer, part.start, part.encoded, storage.pages, ids, code)

    def _table(self, layer: int) -> LayerTable:
        index, device = self._index, self._storage.device
        rows, row_of, offset, kv_lens, q_starts = (x.to(device) for x in index.tensors)
        at = layer if len(rows) > 1 else 0
        return LayerTable(
            rows=rows[at],
            row_of=row_of,
            offset=offset[layer],
            kv_lens=kv_lens[at],
            q_starts=q_starts,
            q_starts_cpu=index.starts.tolist(),
            max_q_len=int(index.q_lens.max(initial=0)),
            max_kv_len=int(index.kv_lens.max(initial=0)),
            kv_lens_cpu=index.kv_lens[at].tolist(),
            wide=index.wide,
        )

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """Latent KV has no keys and values of its own to encode."""
        raise AssertionError("refused when the request came in")


class WindowViews:
    """The views of one store's steps. One of the same sequences as the last, one token each, is the last one, a token
    further, where nobody watches either step and no page is encoded in them: a view is valid until the next one is
    asked for.
    """

    def __init__(self) -> None:
        self._tables: list[PageTable] = []
        self._view: WindowView | None = None

    def view(
        self, tables: list[PageTable], tails: Sequence[RawTail], make: Callable[[], WindowView], *, plain: bool
    ) -> WindowView:
        """``make()``, or the last one; ``plain``: nobody wants to know of the step, or acts in it."""
        last, self._view = self._view, None
        alike = len(tables) == len(self._tables) and all(map(is_, tables, self._tables))
        if not plain or last is None or not alike or not last.follow(tables, tails):
            last = make()
        if plain and last.may_be_followed:
            self._view, self._tables = last, tables
        return last
