"""What the sampler remembers of one sequence: a function of prompt and output, safe from preemption. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .closing import ClosingState
from .grammar import Grammar
from .params import SamplingParams


class SampleState:
    """One sequence's part in sampling. The engine holds it, calls `accept` with every token it keeps, `fork`s it.

    ``params`` must be merged with the model's defaults; ``seed`` is the request's (drawn by the engine when the client
    sent none); ``index`` numbers the sequences of one request; ``eos_ids`` are the model's end-of-sequence ids;
    ``grammar`` is the compiled form of ``params.structured``.
    """

    __slots__ = ("_closing", "_plain", "_tally", "end_ids", "grammar", "index", "num_output", "params", "seed")

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        *,
        seed: int = 0,
        index: int = 0,
        eos_ids: Iterable[int] = (),
        output_ids: Sequence[int] = (),
        grammar: Grammar | None = None,
    ) -> None:
        assert (grammar is None) == (params.structured is None), "a structured request is compiled at its intake"
        self.params, self.seed, self.index = params, seed, index
        self.end_ids: tuple[int, ...] = end_ids(params, eos_ids)
        self.num_output = 0
        self._tally: TokenTally | None = TokenTally() if params.has_penalties else None
        if self._tally is not None and params.repetition_penalty != 1.0:
            self._tally.see(prompt_ids)
        self.grammar = None if grammar is None else grammar.start()
        self._closing = None if params.closing is None else ClosingState(params.closing)
        self._plain = not edits(params)  # the logits decide alone, at every token
        for token_id in output_ids:
            self.accept(token_id)

    def accept(self, token_id: int) -> None:
        """The token is now part of the output."""
        self.num_output += 1
        if self._tally is not None:
            self._tally.count(token_id)
        if self.grammar is not None:
            self.grammar.accept(token_id)
        if self._closing is not None:
            self._closing.accept(token_id)

    def fork(self, index: int | None = None) -> SampleState:
        """An independent copy for a sequence that goes on from here (n > 1, beams)."""
        twin = object.__new__(SampleState)
        twin.params, twin.seed, twin.end_ids, twin.num_output = self.params, self.seed, self.end_ids, self.num_output
        twin.index = self.index if index is None else index
        twin._plain = self._plain
        twin._tally = None if self._tally is None else self._tally.copy()
        twin.grammar = None if self.grammar is None else self.grammar.fork()
        twin._closing = None if self._closing is None else self._closing.copy()
        return twin

    @property
    def forbids_ending(self) -> bool:
        """Whether min_tokens still forbids the ids that would end the sequence; not if a grammar leaves no other."""
        too_short = self.num_output < self.params.min_tokens and bool(self.end_ids)
        return too_short and (self.grammar is None or self.grammar.can_go_on(self.end_ids))

    @property
    def forced(self) -> int | None:
        """The token that has to come next, whatever the logits say (see ``closing``); None mostly."""
        return None if self._closing is None else self._closing.forced

    @property
    def is_edited(self) -> bool:
        """Whether the logits of its next token are changed before temperature."""
        if self._plain:
            return False
        params = self.params
        changed = bool(params.logit_bias) or params.has_penalties or self.grammar is not None
        return changed or self.forbids_ending or self.forced is not None

    @property
    def is_complete(self) -> bool:
        """Whether the structure is there and nothing can follow it."""
        return self.grammar is not None and self.grammar.is_complete

    def penalized(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids that penalties touch, int64 [m], each once, and their counts in the output, float32 [m]; None without."""
        return None if self._tally is None else self._tally.arrays()


def end_ids(params: SamplingParams, eos_ids: Iterable[int]) -> tuple[int, ...]:
    """Ids that end a sequence of these params: the model's own (unless ignore_eos) and the request's stop ids."""
    own = () if params.ignore_eos else tuple(eos_ids)
    return tuple(dict.fromkeys((*own, *(params.stop_token_ids or ()))))


def edits(params: SamplingParams) -> bool:
    """Whether logits of some token may be changed before temperature."""
    shaped = params.logit_bias or params.min_tokens or params.has_penalties or params.closing
    return bool(shaped) or params.structured is not None


class TokenTally:
    """Distinct token ids and their counts in two growing arrays, so that a step reads them as they are."""

    __slots__ = ("_counts", "_ids", "_place", "_size")

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._ids = np.zeros(16, dtype=np.int64)
        self._counts = np.zeros(16, dtype=np.float32)
        self._size = 0

    def see(self, token_ids: Iterable[int]) -> None:
        """The ids occur (in the prompt); their counts stay."""
        for token_id in token_ids:
            self._place_of(token_id)

    def count(self, token_id: int) -> None:
        """The id was generated once more."""
        place = self._place_of(token_id)
        self._counts[place] += 1.0

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Views of the ids and counts; valid until the next change."""
        return self._ids[: self._size], self._counts[: self._size]

    def copy(self) -> TokenTally:
        twin = TokenTally()
        twin._place, twin._ids, twin._counts = self._place.copy(), self._ids.copy(), self._counts.copy()
        twin._size = self._size
        return twin

    def _place_of(self, token_id: int) -> int:
        place = self._place.setdefault(token_id, self._size)
        if place == self._size:
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token_id
            self._size += 1
        return place
