"""One step over sequences whose old pages are encoded whole and whose newest tokens lie raw beside them.

    one sequence   │ encoded page │ encoded page │ … │ raw slots (`raw_tail`), the step's own behind them │

Attention decodes pages while it multiplies them (``kernels.ops.coded_attention``), in a step's program or layer by
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.layout import PageLayout
from ..kernels.ops import LayerTable, coded_attention
from ..kernels.step import CodedStep, StepArrays
from .page_codes import PageCodes
from .policies._windowed import WindowedCodec
from .raw_tail import RawTail
from .step_index import StepIndex
from .storage import PageStorage
from .table import PageTable
from .watching import Received, Tap


class WindowView:
    """The KV view (see ``models.layers.step.KVView``). Sequence s brings ``q_lens[s]`` tokens, side by side, of a model
    that computes in ``dtype``. ``codecs`` may have windows of their own, but read the same pages, as ``codes`` says.
    ``breaks`` is told which of them raised, if one does: another goes on in its place, and if there is none, the rest
    of the step is worth nothing for any sequence.
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
        breaks: Callable[[WindowedCodec, Exception], None] | None = None,
    ) -> None:
        self._storage, self._codes, self._dtype, self._tap, self._breaks = storage, codes, dtype, tap, breaks
        self._codecs = list(dict.fromkeys(codecs))  # those that work; all read alike, so the first one reads
        self._index, self._tails = StepIndex(storage.fmt, tables, q_lens), tails
        self._held = [int(table.lens[0]) for table in tables]  # every head of a sequence is equally long
        for tail, held, num in zip(tails, self._held, q_lens, strict=True):
            tail.make_room(held, num, dtype, storage.device)
        self.received: list[Received] = []
        self.added: list[int] = []

    failures: Mapping[int, str] = MappingProxyType({})
    """Sequences that lost KV: none here (see `offload.view`)."""

    def close(self) -> None:
        """The step is over."""

    in_program = True

    def arrays(self) -> StepArrays | None:
        """As ``StepView.arrays``; None where every layer calls ``attend``: the codec has something to say in each."""
        fmt, sides = self._storage.fmt, self._sides()
        if sides is None:
            return None
        numbers = np.array([self._place(tail) for tail in self._tails], np.int64).T.copy()
        queries = None if self._tap is None else self._tap.rings()
        nowhere = torch.empty(1, int(self._index.starts[-1]), 0, dtype=torch.int32)  # raw slots are in no page
        return StepArrays(
            self._storage.pages,
            PageLayout(fmt.page_size, fmt.k_dim, fmt.v_dim, self._dtype),
            *self._index.tensors,
            nowhere,
            nowhere,
            queries=queries,
            coded=CodedStep(sides.native, *numbers),
        )

    def _sides(self) -> Any:
        if self._storage.device.type != "cpu" or not self._codecs:
            return None
        try:
            return self._codes.sides(self._codecs[0])
        except Exception:  # which ``attend`` will see again, and name its codec
            return None

    @staticmethod
    def _place(tail: RawTail) -> tuple[int, int, int, int]:
        assert tail.k is not None
        assert tail.v is not None
        return tail.k.data_ptr(), tail.v.data_ptr(), tail.start, tail.k.shape[2]

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
        code, starts = self._codes.of(codec, layer), self._index.starts
        raw = [
            tail.put(layer, held, k[starts[s] : starts[s + 1]], v[starts[s] : starts[s + 1]])
            for s, (tail, held) in enumerate(zip(self._tails, self._held, strict=True))
        ]
        return coded_attention(q, self._storage.pages, code, self._table(layer), raw, **options)  # type: ignore[arg-type]

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
        )

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """Latent KV has no keys and values of its own to encode."""
        raise AssertionError("refused when the request came in")
