"""From a plan to logits: tensors in, one forward pass over the ragged batch, the rows that are sampled out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..kernels.step import QueryRings
from ..kv.mixed_view import MixedView
from ..kv.offload.storage import OffloadedStorage
from ..kv.offload.view import OffloadView
from ..kv.policies._windowed import WindowedCodec
from ..kv.policies.base import Need
from ..kv.raw_tail import RawTail
from ..kv.store import Store
from ..kv.stores import Stores
from ..kv.table import PageTable
from ..kv.view import StepView, StepViews
from ..kv.watching import Residual, SlotWeights
from ..kv.window_view import WindowView, WindowViews
from ..schedule.item import Plan
from .guarded import GuardedChooser, GuardedNoter, guarded_residual
from .selection_notes import PageNoter
from .sequence import Sequence

if TYPE_CHECKING:
    from ..models.model import Model


AnyView = StepView | WindowView | OffloadView | MixedView


@dataclass(slots=True)
class Piece:
    """Tokens ``start : start + num_tokens`` of a sequence, at rows ``first_row`` … of the step's hidden states."""

    sequence: Sequence
    start: int
    num_tokens: int
    first_row: int

    @property
    def completes(self) -> bool:
        """Whether the sequence's newest token is in this piece, so that the next one can be sampled."""
        return self.start + self.num_tokens == len(self.sequence.tokens)


@dataclass(slots=True)
class StepResult:
    """``logits`` float32 [len(sampled), vocab], one row for each piece that completes its sequence, in order. They are
    valid until the next step, and not to be looked at where ``likeliest`` has no -1.

    ``batch``: all pieces, as views and taps count them; ``pieces``: those whose sequences did not end with the pass.

    ``hidden`` [T, hidden_size] where somebody wants those of more tokens than are sampled, else None. ``likeliest``:
    the tokens of all rows where nothing but the largest logit decides them, else empty.
    """

    batch: list[Piece]
    sampled: list[Sequence]
    logits: Tensor
    hidden: Tensor | None
    view: AnyView
    tap: QueryTap | None
    plain: bool = False  # no policy has anything to see or do
    likeliest: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = self.batch

    def drop(self, sequence: Sequence) -> None:
        """The sequence lost its pages after all: it is not sampled in this step."""
        if sequence in self.sampled:
            row = self.sampled.index(sequence)
            del self.sampled[row], self.likeliest[row : row + 1]
            self.logits = torch.cat([self.logits[:row], self.logits[row + 1 :]])


_NONE = torch.empty(0, 0)


class QueryTap:
    """Sees each layer's queries and keeps those that a policy will want at its next act; or says where they go.

    ``spans``: piece -> rows of ``queries[layer]`` [R, Hq, Dk] that are its newest tokens. ``in_rings``: they are where
    the sequences remember them already. ``scale``: of all of them; those of a layer that has another are as much
    longer or shorter.
    """

    def __init__(self, pieces: list[Piece], model: Model) -> None:
        self._pieces, self._model = pieces, model
        self.spans: dict[int, tuple[int, int]] = {}
        self.queries: dict[int, Tensor] = {}
        self.scale, self.soft_cap, self.in_rings = 1.0, 0.0, False
        rows: list[np.ndarray] = []
        for index, piece in enumerate(pieces):
            wanted = _queries_wanted(piece)
            if wanted:
                last = piece.first_row + piece.num_tokens
                first = sum(map(len, rows))
                rows.append(np.arange(last - wanted, last))
                self.spans[index] = (first, first + wanted)
        self._rows = torch.from_numpy(np.concatenate(rows)).to(model.device) if rows else None

    def __call__(self, layer: int, q: Tensor, options: Mapping[str, object]) -> None:
        assert self._rows is not None
        mine, scale, soft_cap = q.index_select(0, self._rows), options["scale"], options.get("soft_cap", 0.0)
        assert isinstance(scale, float | int)
        assert isinstance(soft_cap, float | int)
        if not self.queries:
            self.scale, self.soft_cap = float(scale), float(soft_cap)
        self.queries[layer] = mine if scale == self.scale else mine * (scale / self.scale)

    def rings(self) -> QueryRings | None:
        """As `kv.watching.Tap`: None where layers scale their queries differently."""
        if not self._model.spec.scales_alike:
            return None
        attn, num_heads = self._model.spec.blocks[-1].attn, self._model.shape.num_q_heads
        self.scale, self.soft_cap, self.in_rings = attn.scale, getattr(attn, "soft_cap", 0.0), True  # latent: none
        places = np.zeros((4, len(self._pieces)), np.int64)
        for index, (first, last) in self.spans.items():
            piece, num = self._pieces[index], last - first
            state, end = piece.sequence.policy_state, piece.start + piece.num_tokens
            places[:, index] = *state.ring_for(num, end, num_heads, self._model.dtype), num
        return QueryRings(*places)


class Runner:
    """Owns the way of a step through the device; knows no requests' texts and no scheduling. Call in inference mode."""

    def __init__(self, model: Model, stores: Stores) -> None:
        self.model, self._stores = model, stores
        self._views: dict[Store, StepViews] = {}
        self._window_views: dict[Store, WindowViews] = {}

    def run(self, plan: Plan, every_hidden: bool = False) -> StepResult:
        """One forward pass. KV of the plan's tokens is written; nothing is committed yet.

        ``every_hidden``: the result has the hidden states of all tokens, as where a request wants those of its own.
        """
        pieces = _pieces(plan)
        for store in self._stores:
            store.run_copies()
        plain = all(piece.sequence.is_left_alone(piece.start, piece.start + piece.num_tokens) for piece in pieces)
        tap = None if plain else QueryTap(pieces, self.model)
        view = self._plain_view(pieces) if tap is None else self._view(pieces, tap)
        done = [piece for piece in pieces if piece.completes and piece.sequence.group.request.pooling is None]
        result = StepResult(pieces, [piece.sequence for piece in done], _NONE, None, view, tap, plain)
        rows = [piece.first_row + piece.num_tokens - 1 for piece in done]
        try:
            self._compute(result, rows, every_hidden or any(_wants_hidden(piece) for piece in pieces))
        finally:
            view.close()
        return result

    def _compute(self, result: StepResult, rows: list[int], all_hidden: bool) -> None:
        """The forward pass: what the model says at ``rows``, those of ``result.sampled``, and perhaps hidden states."""
        tokens, positions = _tokens(result.pieces)
        if all_hidden:
            device = self.model.device
            result.hidden = self.model.forward(_index(tokens, device), _index(positions, device), result.view)
            result.logits = self.logits(result.hidden, rows)
        else:
            likeliest = all(sequence.takes_likeliest for sequence in result.sampled)
            wanted = None if len(rows) == len(tokens) else rows
            scores = self.model.step(tokens, positions, result.view, wanted, likeliest=likeliest)
            result.logits, result.likeliest = scores.logits, scores.likeliest

    def is_one_call(self, plan: Plan) -> bool:
        """Whether the step will touch no tensor: from ids to ids in the kernels, and no policy wants anything. Then it
        needs no inference mode, whose beginning and end take 30 us where a model's weights went through the caches.
        """
        if not self.model.in_one_call:
            return False
        sequences: list[Sequence] = [scheduled.item for scheduled in plan.scheduled]  # type: ignore[misc]
        store = sequences[0].store
        if isinstance(store.storage, OffloadedStorage):
            return False
        if not all(one.store is store and one.takes_likeliest and not _asks_hidden(one) for one in sequences):
            return False
        return all(
            item.is_left_alone(s.start, s.start + s.num_tokens)
            for s, item in zip(plan.scheduled, sequences, strict=True)
        )

    def _plain_view(self, pieces: list[Piece]) -> AnyView:
        """As ``_view`` for sequences whose policies want nothing, with what is left of the last step's index."""
        store = pieces[0].sequence.store
        if isinstance(store.storage, OffloadedStorage) or any(p.sequence.store is not store for p in pieces):
            return self._view(pieces, None)
        if store.codes is not None:
            return self._window_view(store, pieces, None, plain=True)
        table = store.manager.table
        tables = [table(piece.sequence.seq_id) for piece in pieces]
        view = self._views_of(store).view(tables, [piece.num_tokens for piece in pieces], wide=_wide(pieces))
        if weights := _weights(pieces):
            view.watch(weights=weights)
        return view

    def _views_of(self, store: Store) -> StepViews:
        if store not in self._views:
            self._views[store] = StepViews(store.storage)
        return self._views[store]

    def _window_view(self, store: Store, pieces: list[Piece], tap: QueryTap | None, *, plain: bool) -> WindowView:
        tables = [store.manager.table(piece.sequence.seq_id) for piece in pieces]
        tails = [tail for piece in pieces if (tail := piece.sequence.policy_state.tail) is not None]
        views = self._window_views.setdefault(store, WindowViews())
        make = partial(_new_window_view, store, tables, tails, pieces, tap, self.model.dtype)
        return views.view(tables, tails, make, plain=plain)

    def logits(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """float32 [len(rows), vocab] of these rows of the hidden states [T, hidden_size]."""
        if len(rows) == hidden.shape[0]:  # each its own: they are in order
            return self.model.logits(hidden)
        return self.model.logits(hidden[_index(rows, hidden.device)])

    def _view(self, pieces: list[Piece], tap: QueryTap | None) -> AnyView:
        """One view where all pages have one format, else one for each format."""
        stores = list(dict.fromkeys(piece.sequence.store for piece in pieces))
        seen = tap if tap is not None and tap.spans else None
        plain = tap is None
        if len(stores) == 1:
            return self._store_view(stores[0], pieces, seen, plain=plain)
        members = [[i for i, piece in enumerate(pieces) if piece.sequence.store is store] for store in stores]
        parts = zip(stores, members, strict=True)
        views = [self._store_view(store, [pieces[i] for i in mine], plain=plain) for store, mine in parts]
        return MixedView(views, members, [piece.num_tokens for piece in pieces], stores[0].storage.device, seen)

    def _store_view(
        self, store: Store, pieces: list[Piece], tap: QueryTap | None = None, *, plain: bool
    ) -> StepView | WindowView | OffloadView:
        if store.codes is not None:
            return self._window_view(store, pieces, tap, plain=plain)
        tables = [store.manager.table(piece.sequence.seq_id) for piece in pieces]
        q_lens, num_q_heads = [piece.num_tokens for piece in pieces], self.model.shape.num_q_heads
        if isinstance(store.storage, OffloadedStorage):
            choosers = _choosers(store, pieces, num_q_heads)
            return OffloadView(store.storage, tables, q_lens, choosers, _noters(pieces), _wide(pieces))
        watched = {i: piece.sequence for i, piece in enumerate(pieces) if _wants_probs(piece)}
        receivers = {i: one.policy_state for i, one in watched.items() if one.policy.lossy is None}
        choosers = _choosers(store, pieces, num_q_heads)
        view = self._views_of(store).view(tables, q_lens, choosers=choosers, wide=_wide(pieces))
        view.watch(
            collect_probs=watched.keys(),
            collect_counts=any(Need.WANTED in piece.sequence.policy.needs for piece in pieces),
            sum_last={i: last for i in watched if (last := _queries_summed(pieces[i]))},
            receivers=receivers,
            tap=tap,
            residuals=_residuals(pieces),
            weights=_weights(pieces),
        )
        return view


def _new_window_view(
    store: Store,
    tables: list[PageTable],
    tails: list[RawTail],
    pieces: list[Piece],
    tap: QueryTap | None,
    dtype: torch.dtype,
) -> WindowView:
    policies, q_lens = [piece.sequence.policy for piece in pieces], [piece.num_tokens for piece in pieces]
    codecs = [codec for policy in policies if (codec := policy.windowed) is not None]
    encoders = [policy.windowed if policy.encodes_within else None for policy in policies]
    assert store.codes is not None
    rest = encoders, _breaker(pieces), _wide(pieces)
    return WindowView(store.storage, tables, q_lens, codecs, tails, store.codes, dtype, tap, *rest)


def _wide(pieces: list[Piece]) -> list[bool] | None:
    """Who is computed as prompts are. A token's bits depend on whether it is of the prompt or the answer, never on how
    many come with it: an answer that is computed again, many tokens at once, has the KV that it had, and so has a
    prompt that comes in other chunks. None: single tokens of answers, which nobody has to be told of.
    """
    wide = [piece.start < piece.sequence.prompt_len for piece in pieces]
    return wide if any(wide) or any(piece.num_tokens > 1 for piece in pieces) else None


def _breaker(pieces: list[Piece]) -> Callable[[WindowedCodec, Exception], None]:
    """Tells those of them whose codec it is that it raised."""

    def breaks(codec: WindowedCodec, error: Exception) -> None:
        for piece in pieces:
            if piece.sequence.policy.windowed == codec:
                piece.sequence.breaks(error, "decoding pages")

    return breaks


def _weights(pieces: list[Piece]) -> dict[int, SlotWeights]:
    """For sequences some of whose slots count more than once."""
    return {
        index: found
        for index, piece in enumerate(pieces)
        if piece.sequence.policy.weighs and (found := piece.sequence.policy_state.weights) is not None
    }


def _residuals(pieces: list[Piece]) -> dict[int, Residual]:
    """For sequences whose evicted slots go on answering, once there are any."""
    found: dict[int, Residual] = {}
    for index, piece in enumerate(pieces):
        sequence = piece.sequence
        eviction = sequence.policy.eviction
        if eviction is not None and eviction.leaves_residual and sequence.policy_state.memory:
            assert piece.num_tokens == 1, "the tokens after an act come one by one"
            found[index] = guarded_residual(sequence)
    return found


def _choosers(store: Store, pieces: list[Piece], num_q_heads: int) -> dict[int, GuardedChooser]:
    """For every decode step of a sequence whose policy selects pages, and does not want all that there are."""
    choosers = {}
    for index, piece in enumerate(pieces):
        sequence = piece.sequence
        if sequence.policy.selection is not None and piece.start >= sequence.prompt_len:
            chooser = GuardedChooser(sequence, store.storage, store.manager.table(sequence.seq_id), num_q_heads)
            if isinstance(store.storage, OffloadedStorage) or not chooser.reads_all():
                choosers[index] = chooser
    return choosers


def _noters(pieces: list[Piece]) -> dict[int, GuardedNoter]:
    """For every chunk of a prompt of which a part of the pages will be read."""
    noters = {}
    for index, piece in enumerate(pieces):
        sequence, selection = piece.sequence, piece.sequence.policy.selection
        if selection is not None and piece.start < sequence.prompt_len:
            full = sequence.prompt_len // sequence.store.storage.fmt.page_size
            read = sequence.asks("choosing pages", partial(selection.num_pages, full), lambda: 0)
            if read < full and not sequence.broken:
                noters[index] = GuardedNoter(
                    sequence, PageNoter(selection, sequence.policy_state.notes, sequence.group.learn())
                )
    return noters


def _pieces(plan: Plan) -> list[Piece]:
    pieces, row = [], 0
    for scheduled in plan.scheduled:
        sequence = scheduled.item
        assert isinstance(sequence, Sequence)
        pieces.append(Piece(sequence, scheduled.start, scheduled.num_tokens, row))
        row += scheduled.num_tokens
    return pieces


def _tokens(pieces: list[Piece]) -> tuple[list[int], list[int]]:
    """Token ids and positions of the batch. A token's position is its index, whatever was evicted."""
    if sum(piece.num_tokens for piece in pieces) == len(pieces):
        positions = [piece.start for piece in pieces]
        return [piece.sequence.tokens[piece.start] for piece in pieces], positions
    tokens, positions = [], []
    for piece in pieces:
        span = range(piece.start, piece.start + piece.num_tokens)
        tokens += piece.sequence.tokens[span.start : span.stop]
        positions += span
    return tokens, positions


def _index(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _wants_probs(piece: Piece) -> bool:
    sequence = piece.sequence
    if Need.PROBS in sequence.policy.needs:
        return sequence.next_act(piece.start) is not None
    return sequence.sums(piece.start, piece.num_tokens)


def _queries_summed(piece: Piece) -> int:
    """How many of the piece's last queries are summed up; 0: all of them."""
    sequence = piece.sequence
    if Need.PROBS in sequence.policy.needs:
        return 0
    act = sequence.next_act(piece.start)
    assert act is not None
    first = act - sequence.policy.window
    return piece.start + piece.num_tokens - first if piece.start < first else 0


def _asks_hidden(sequence: Sequence) -> bool:
    request = sequence.group.request
    return request.pooling is not None or request.params.prompt_logprobs is not None


def _wants_hidden(piece: Piece) -> bool:
    return _asks_hidden(piece.sequence) or hidden_wanted(piece) > 0


def hidden_wanted(piece: Piece) -> int:
    """How many of the piece's last tokens' hidden states its policy is shown at its next act."""
    return _before_act(piece) if Need.HIDDEN in piece.sequence.policy.needs else 0


def _before_act(piece: Piece) -> int:
    """How many of the piece's last tokens are among the ``window`` before the policy's next act."""
    window = piece.sequence.policy.window
    act = piece.sequence.next_act(piece.start) if window else None
    if act is None:
        return 0
    return max(0, min(piece.num_tokens, piece.start + piece.num_tokens - (act - window), window))


def _queries_wanted(piece: Piece) -> int:
    """How many of the piece's last tokens' queries its policy is shown at its next act."""
    sequence = piece.sequence
    if not sequence.policy.looks or sequence.sums(piece.start, piece.num_tokens):
        return 0
    return _before_act(piece)
