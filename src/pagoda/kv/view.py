"""What a model sees of the KV during one step: write the chunk's keys and values, attend over everything held.

Built once per step from the tables of the batch; all index arrays are made in numpy for all layers at once. Where every
table is of granularity ``sequence`` (exact attention), the layers share everything but an offset.

Sizes: S sequences, T tokens of the step, L layers, H kv-heads, R rows of one layer, W columns of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from operator import is_
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..kernels.layout import PageLayout
from ..kernels.ops import LayerTable, kv_write, paged_attention
from ..kernels.ops._scratch import scratch_table
from ..kernels.step import SlotSums, StepArrays, StepWeights
from .choices import Choices, Chooser
from .step_index import StepIndex
from .storage import PageStorage
from .table import PageTable
from .watching import Received, Receiver, Residual, SlotWeights, Tap


class StepView:
    """The KV view (see ``models.layers.step.KVView``) over pages. Valid for one step: the tables must have reserved the
    step's tokens, and not have committed them.

    tables, q_lens   the batch: sequence s brings ``q_lens[s]`` tokens, side by side in that order.
    collect_probs    sequences (by index, or all) whose attention probabilities are summed per slot, over the chunk's
                     queries and the heads of the group: ``received``. They are attended apart from the others, who keep
                     the fast way.
    collect_counts   whether it is counted, too, how many of them gave the slot at least their mean.
    sum_last         sequence (by index) -> w > 0: only the last w queries of its chunk are summed.
    receivers        sequence (by index) -> where what its slots receive may be added at once, where all layers run as
                     one: then ``received`` does not have it, and ``added`` names the sequence.
    tap              sees ``(layer, q, options)`` of every layer: how KV policies come to the queries; or says where
                     they go, where all layers run as one.
    choices          of steps before, where somebody has them (`StepViews`).
    weights          sequence (by index) -> how often its slots count in the softmax, where some count more than once.
    residuals        sequence (by index) of one token -> what its evicted slots answer, which is joined with attention.
    wide             sequences whose queries are computed as a prompt's are, see `LayerTable`.
    choosers         sequence (by index) of one token -> who says, with ``choose(layer, q [Hq, Dk], scale)``, what
                     it reads: page ids int32 [H, K] and slots int32 [H], all pages but the last full.
    """

    def __init__(
        self,
        storage: PageStorage,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        *,
        collect_probs: bool | Iterable[int] = False,
        collect_counts: bool = False,
        sum_last: Mapping[int, int] | None = None,
        receivers: Mapping[int, Receiver] | None = None,
        tap: Tap | None = None,
        choosers: Mapping[int, Chooser] | None = None,
        residuals: Mapping[int, Residual] | None = None,
        weights: Mapping[int, SlotWeights] | None = None,
        choices: Choices | None = None,
        wide: Sequence[bool] | None = None,
    ) -> None:
        _check(tables, q_lens)
        self._fmt, self._pages, self._layout = storage.fmt, storage.pages, storage.layout
        self.num_tokens = sum(q_lens)
        self._index = StepIndex(self._fmt, tables, q_lens, wide=wide)
        self._on_cpu = storage.device.type == "cpu"
        self._take_writes()
        self._choosers = choosers or {}
        self._choices = choices or Choices()
        self.watch(
            collect_probs=collect_probs, collect_counts=collect_counts, sum_last=sum_last, receivers=receivers, tap=tap,
            residuals=residuals, weights=weights,
        )  # fmt: skip

    def watch(
        self,
        *,
        collect_probs: bool | Iterable[int] = False,
        collect_counts: bool = False,
        sum_last: Mapping[int, int] | None = None,
        receivers: Mapping[int, Receiver] | None = None,
        tap: Tap | None = None,
        residuals: Mapping[int, Residual] | None = None,
        weights: Mapping[int, SlotWeights] | None = None,
    ) -> None:
        """What somebody wants to know of the step, or adds to its answers; before it runs."""
        self.received: list[Received] = []
        self.added: list[int] = []
        self._tap, self._counts, self._receivers, self._sum_last = tap, collect_counts, receivers or {}, sum_last or {}
        self._residuals, self._weights = residuals or {}, weights or {}
        assert not self._weights.keys() & (self._choosers.keys() | self._residuals), "weights of slots that were chosen"
        self._watched: set[int] = set()
        if collect_probs:
            everybody = set(range(len(self._index.q_lens)))
            self._watched = everybody if collect_probs is True else everybody.intersection(collect_probs)
        assert not self._watched & set(self._choosers), "probability sums of pages that were not read"
        if tap is not None or self._watched or self._residuals or self._weights:
            self._arrays = None
            self._divide_anew()

    failures: Mapping[int, str] = MappingProxyType({})
    """Sequences that lost KV: none here (see `offload.view`)."""

    def close(self) -> None:
        """The step is over. A view may go on (`StepViews`); what sequences remember does not wait for that with it."""
        self._choosers, self._receivers, self._residuals, self._weights, self._tap = {}, {}, {}, {}, None

    def arrays(self) -> StepArrays | None:
        """The whole step as plain arrays, for those who run all layers at once. None where each layer calls ``attend``:
        a sequence chooses its pages in a way of its own, probabilities are summed that have nowhere to go, or noted
        queries are of layers that scale them differently.
        """
        if self._arrays is not None:
            return self._arrays
        if self._residuals or not self._on_cpu:
            return None
        if not self._adds_at_once():
            return None
        if not all(chooser.has_rule for chooser in self._choosers.values()):
            return None
        queries = None if self._tap is None else self._tap.rings()
        if self._tap is not None and queries is None:
            return None
        choice = self._choices.of(self._choosers) if self._choosers else None
        page_ids, slots = self._page_ids.contiguous(), self._slots.contiguous()  # numpy may index into any order
        sums = self._sums() if self._watched else None
        weights = self._step_weights() if self._weights else None
        arrays = StepArrays(
            self._pages, self._layout, *self._index.tensors, page_ids, slots, choice, sums, queries, weights,
            wide=self._index.wide,
        )  # fmt: skip
        if choice is None and sums is None and queries is None and weights is None:
            self._arrays = arrays
        return arrays

    def follow(self, tables: Sequence[PageTable], choosers: Mapping[int, Chooser] | None = None) -> bool:
        """Becomes, in place, the view of the step after its own, which nobody watches so far: see `StepIndex.follow`,
        also for when it cannot.
        """
        if not self._index.follow(tables):
            return False
        if choosers or self._choosers:
            self._choosers, self._arrays = choosers or {}, None
        _check(tables, self._index.q_lens)
        if self._index.writes is not self._writes or not self._on_cpu:
            self._take_writes()
        self._divide_anew()
        self.watch()
        return True

    def _divide_anew(self) -> None:
        """Who is attended together is found again, where that is asked for."""
        for name in ("_parts", "_alone"):
            self.__dict__.pop(name, None)

    def _take_writes(self) -> None:
        self._writes = self._index.writes
        self._page_ids, self._slots = self._writes if self._on_cpu else (x.to(self._pages.device) for x in self._writes)
        self._arrays: StepArrays | None = None  # while they hold, perhaps for more than one step

    def _adds_at_once(self) -> bool:
        """Whether what is summed has somewhere to go while the step runs."""
        return self._watched <= self._receivers.keys()

    def _sums(self) -> SlotSums:
        """Where what the slots of this step's sequences receive is added."""
        num_slots = self._index.kv_lens.max(axis=(0, 2)).tolist()
        sums, counts, widths, count_widths, last = np.zeros((5, len(num_slots)), np.int64)
        self.added = sorted(self._watched)
        for s in self.added:
            receiver, last[s] = self._receivers[s], self._sum_last.get(s, 0)
            _, sums[s], widths[s] = receiver.receives(num_slots[s], self._pages.device)
            if receiver.counts_up:
                _, counts[s], count_widths[s] = receiver.counts(num_slots[s], self._pages.device)
        return SlotSums(sums, counts, widths, count_widths, last)

    def _step_weights(self) -> StepWeights:
        """Where it lies how often slots count."""
        num_seqs, num_layers = len(self._index.q_lens), self._fmt.num_layers
        logs, widths = np.zeros((num_layers, num_seqs), np.int64), np.zeros(num_seqs, np.int64)
        for s, weights in self._weights.items():
            logs[:, s], widths[s] = weights.addresses(num_layers), weights.logs.shape[2]
        return StepWeights(logs, widths)

    in_program = True

    @cached_property
    def _parts(self) -> list[_Part]:
        """The sequences that are attended together, layer by layer."""
        rows = torch.from_numpy(self._index.rows).to(self._pages.device)
        choosing = set(self._choosers)
        moving = {s for s, chooser in self._choosers.items() if chooser.moves}
        weighted = self._weights.keys() - self._watched
        others = set(range(len(self._index.q_lens))) - self._watched - choosing - weighted
        kinds = (
            (others, False, False), (self._watched, True, False), (choosing - moving, False, False),
            (weighted, False, False),
        )  # fmt: skip
        return [
            _Part(self._index, rows, sorted(members), probs, moves)
            for members, probs, moves in (*kinds, (moving, False, True))
            if members
        ]

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        """Writes k ``[T, H, k_dim]``, v ``[T, H, v_dim]``; attends with q ``[T, Hq, k_dim]``: ``[T, Hq, v_dim]``."""
        fmt = self._fmt
        assert k.shape == (self.num_tokens, fmt.num_kv_heads, fmt.k_dim), f"k {tuple(k.shape)} for {fmt}"
        assert v.shape == (self.num_tokens, fmt.num_kv_heads, fmt.v_dim), f"v {tuple(v.shape)} for {fmt}"
        options = {
            "scale": scale, "window": window, "soft_cap": soft_cap, "sinks": sinks, "alibi_slopes": alibi_slopes,
        }  # fmt: skip
        return self._write_and_attend(layer, q, k, v, None, options)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """MLA: writes latent ``[T, 1, k_dim]``, its first ``v_dim`` columns V too, then attends: ``[T, Hq, v_dim]``."""
        fmt = self._fmt
        assert latent.shape == (self.num_tokens, fmt.num_kv_heads, fmt.k_dim), f"latent {tuple(latent.shape)} for {fmt}"
        return self._write_and_attend(layer, q, latent, None, v_dim, {"scale": scale})

    def _write_and_attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, v_dim: int | None, options: Mapping[str, object]
    ) -> Tensor:
        fmt = self._fmt
        assert (q.shape[0], q.shape[2]) == (self.num_tokens, fmt.k_dim), f"q {tuple(q.shape)} for {fmt}"
        if self._tap is not None:
            self._tap(layer, q, options)
        shared = len(self._page_ids) == 1
        page_ids = self._page_ids[0] + layer * fmt.num_kv_heads if shared else self._page_ids[layer]
        kv_write(k, v, self._pages, self._layout, page_ids, self._slots[0 if shared else layer])
        if len(self._parts) == 1:
            out = self._attend_part(self._parts[0], layer, q, v_dim, options)
        else:
            out = q.new_empty(self.num_tokens, q.shape[1], fmt.v_dim if v_dim is None else v_dim)
            for part in self._parts:
                assert part.tokens is not None
                mine = self._attend_part(part, layer, q.index_select(0, part.tokens), v_dim, options)
                out.index_copy_(0, part.tokens, mine)
        for s, residual in self._residuals.items():
            self._join(s, residual, layer, q, out, v_dim, options)
        return out

    def _join(
        self, s: int, residual: Residual, layer: int, q: Tensor, out: Tensor, v_dim: int | None,
        options: Mapping[str, object],
    ) -> None:  # fmt: skip
        """``out`` of the sequence becomes what attention over its slots and the evicted would be. With the part of the
        evicted as a sink (beside the model's own, if it has any), attention shrinks by the share that stays with slots
        and sinks; the rest is the evicted's.
        """
        token = int(self._index.starts[s])
        found = residual(q[token], layer)
        if found is None:
            return
        sink, mean = found
        if isinstance(own := options.get("sinks"), Tensor):
            sink = torch.logaddexp(sink, own.float())
        table = self._alone[s].table(layer)
        asked = dict(options) | {"sinks": sink, "v_dim": v_dim}
        mine = paged_attention(q[token : token + 1], self._pages, self._layout, table, **asked)[0]  # type: ignore[arg-type]
        whole = out[token].float()
        kept = (mine * whole).sum(-1) / whole.square().sum(-1).clamp(min=1e-30)
        out[token] = mine + ((1 - kept.clamp(0, 1))[:, None] * mean[:, : mine.shape[-1]]).to(mine.dtype)

    @cached_property
    def _alone(self) -> dict[int, _Part]:
        """Sequences with residuals, each a batch of its own."""
        rows = torch.from_numpy(self._index.rows).to(self._pages.device)
        return {s: _Part(self._index, rows, [s], False, False) for s in self._residuals}

    def _attend_part(
        self, part: _Part, layer: int, q: Tensor, v_dim: int | None, options: Mapping[str, object]
    ) -> Tensor:
        if part.moves:
            return self._attend_copies(part, layer, q, options)
        table = part.table(layer)
        if part.members[0] in self._choosers:
            table = self._chosen_table(part, layer, q, options)
        sums = counts = None
        if part.probs:
            if not self.received:
                self.received.append(part.receiver(self._fmt.num_layers, self._counts))
            sums, counts = self.received[0].of(layer)
        return paged_attention(
            q,
            self._pages,
            self._layout,
            table,
            v_dim=v_dim,
            prob_sums=sums,
            prob_counts=counts,
            slot_weights=self._weights_of(part, layer),
            sum_last=0 if sums is None else [self._sum_last.get(s, 0) for s in part.members],
            **options,  # type: ignore[arg-type]
        )

    def _weights_of(self, part: _Part, layer: int) -> list[Tensor | None] | None:
        """As ``paged_attention`` takes them."""
        if self._weights.keys().isdisjoint(part.members):
            return None
        return [self._weights[s].of(layer) if s in self._weights else None for s in part.members]

    def _attend_copies(self, part: _Part, layer: int, q: Tensor, options: Mapping[str, object]) -> Tensor:
        """Sequences that read copies of what they chose, one after the other."""
        fmt, scale, outs = self._fmt, options["scale"], []
        assert isinstance(scale, float | int)
        layout = PageLayout(fmt.page_size, fmt.k_dim, fmt.v_dim, q.dtype)
        for i, s in enumerate(part.members):
            k, v, num_slots = self._choosers[s].copies(layer, q[i], float(scale))
            pages = torch.cat([k.flatten(2), v.flatten(2)], -1).to(q.dtype)  # [H, K, elements]
            row = np.arange(pages.shape[1], dtype=np.int32)
            table = scratch_table(fmt.num_kv_heads, q.device, [row], [num_slots], [0, 1], len(row))
            outs.append(paged_attention(q[i : i + 1], pages.flatten(0, 1), layout, table, **options))  # type: ignore[arg-type]
        return torch.cat(outs)

    def _chosen_table(self, part: _Part, layer: int, q: Tensor, options: Mapping[str, object]) -> LayerTable:
        """A row of single pages for every (sequence, head): those that its chooser named."""
        scale = options["scale"]
        assert isinstance(scale, float | int)
        chosen = [self._choosers[s].choose(layer, q[i], float(scale)) for i, s in enumerate(part.members)]
        num_heads, width = self._fmt.num_kv_heads, max(ids.shape[1] for ids, _ in chosen)
        rows = torch.cat([torch.nn.functional.pad(ids, (0, width - ids.shape[1])) for ids, _ in chosen])
        lens = torch.stack([lens for _, lens in chosen])
        pairs = torch.arange(len(rows), dtype=torch.int32, device=rows.device).view(-1, num_heads)
        whole, lens_cpu = part.table(layer), lens.tolist()
        return replace(
            whole,
            rows=rows.contiguous(),
            row_of=pairs,
            offset=torch.zeros_like(pairs),
            kv_lens=lens,
            max_kv_len=max(map(max, lens_cpu)),
            kv_lens_cpu=lens_cpu,
        )


def _check(tables: Sequence[PageTable], q_lens: Iterable[int]) -> None:
    for table, num in zip(tables, q_lens, strict=True):
        assert table.tail_owned, "a step over a page that others read"
        assert table.room >= num, "a step over slots that were not reserved"


class StepViews:
    """The views of one store's steps. One of the same sequences as the last, one token each, is the last one, a token
    further: a view is valid until the next one is asked for. Choices of pages go on where they stand.
    """

    def __init__(self, storage: PageStorage) -> None:
        self._storage = storage
        self._tables: list[PageTable] = []  # of the last step, if every one of its sequences brought one token
        self._view: StepView | None = None
        self._choices = Choices()

    def view(
        self,
        tables: list[PageTable],
        q_lens: Sequence[int],
        *,
        choosers: Mapping[int, Chooser] | None = None,
        wide: Sequence[bool] | None = None,
    ) -> StepView:
        """As ``StepView`` of these, for somebody to ``watch`` or not."""
        last, self._view = self._view, None
        if wide is not None or len(q_lens) != sum(q_lens):
            return StepView(self._storage, tables, q_lens, choosers=choosers, choices=self._choices, wide=wide)
        alike = len(tables) == len(self._tables) and all(map(is_, tables, self._tables))
        if last is None or not alike or not last.follow(tables, choosers):
            last = StepView(self._storage, tables, q_lens, choosers=choosers, choices=self._choices)
        self._view, self._tables = last, tables
        return last


class _Part:
    """Sequences of the batch that are attended in one call. ``tokens``: which of the step's are theirs (None: all)."""

    def __init__(self, index: StepIndex, rows: Tensor, members: list[int], probs: bool, moves: bool) -> None:
        self.members, self.probs, self.moves = members, probs, moves
        q_lens = index.q_lens[members]
        q_starts = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
        kv_lens = index.kv_lens[:, members]
        self._q_starts_cpu: list[int] = q_starts.tolist()
        self._max_q_len = int(q_lens.max())
        self._most_slots = kv_lens.max(axis=(0, 2))
        self._kv_lens_cpu: list[list[list[int]]] = kv_lens.tolist()
        self._max_kv_lens: list[int] = kv_lens.max(axis=(1, 2)).tolist()
        self._row_of, self._q_starts, offset, lens = (
            torch.from_numpy(x).to(rows.device)
            for x in (index.row_of[members], q_starts, index.offset[:, members], kv_lens)
        )
        self._rows, self._offset, self._kv_lens = rows.unbind(), offset.unbind(), lens.unbind()
        self._wide = None if index.wide is None else index.wide[members]
        self.tokens: Tensor | None = None
        if len(members) < len(index.q_lens):
            spans = [np.arange(index.starts[s], index.starts[s + 1]) for s in members]
            self.tokens = torch.from_numpy(np.concatenate(spans)).to(rows.device)

    def receiver(self, num_layers: int, counts: bool) -> Received:
        """Room for what all layers' slots receive."""
        num_slots: list[int] = self._most_slots.tolist()
        shape = (num_layers, len(self.members), self._kv_lens[0].shape[1], max(num_slots))
        sums, chosen = (
            torch.empty(shape, dtype=torch.float32, device=self._row_of.device) if asked else None
            for asked in (True, counts)
        )
        assert sums is not None
        return Received(self.members, num_slots, sums, chosen)

    def table(self, layer: int) -> LayerTable:
        """The ragged batch as one layer's attention sees it."""
        at = layer if len(self._rows) > 1 else 0
        return LayerTable(
            rows=self._rows[at],
            row_of=self._row_of,
            offset=self._offset[layer],
            kv_lens=self._kv_lens[at],
            q_starts=self._q_starts,
            q_starts_cpu=self._q_starts_cpu,
            max_q_len=self._max_q_len,
            max_kv_len=self._max_kv_lens[at],
            kv_lens_cpu=self._kv_lens_cpu[at],
            wide=self._wide,
        )
