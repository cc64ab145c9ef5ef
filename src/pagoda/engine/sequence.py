"""One token stream of a request, and the request's streams together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from ..core.types import FinishReason, Granularity
from ..kv.policies._stack import PolicyStack
from ..kv.policies._windowed import raw_tokens
from ..kv.policies.base import Need
from ..kv.store import Store
from ..kv.table import PageTable
from ..sampling.logprobs import TokenLogprob
from ..sampling.state import edits
from .outputs import Timing
from .policy_state import PolicyState
from .request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from ..sampling.finish import FinishRule
    from ..sampling.state import SampleState
    from .beams import BeamGroup
    from .text import TextStream

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Sequence:
    """Tokens, how many of them have KV, and what sampling and policy remember.

    tokens: | prompt .......................... | output ............ |
            0            num_computed ^   prompt_len                len(tokens)
    """

    __slots__ = (
        "_act", "_greedy", "_summed", "broken", "cumulative_logprob", "finish_reason", "granularity", "group", "index",
        "logprobs", "most_remembered", "num_computed", "num_shown", "plain", "policy_state", "sample_state", "selects",
        "seq_id", "stop_reason", "store", "table", "text", "token_at", "tokens",
    )  # fmt: skip

    def __init__(self, seq_id: int, group: RequestState, index: int, granularity: Granularity) -> None:
        self.seq_id, self.group, self.index, self.granularity = seq_id, group, index, granularity
        self.store = group.store
        self.tokens: list[int] = list(group.request.prompt_ids)
        self.num_computed = 0
        self.table: PageTable | None = None  # its pages, once the memory was asked for some
        policy = group.request.policy
        self.plain = policy.keeps_all and policy.windowed is None  # no step asks its policy anything
        self.selects = policy.selection is not None
        self._greedy = _is_greedy(group)
        self._act: tuple[int, int | None] = (0, -1)  # from this many tokens on, the next act is at that many
        self._summed: tuple[int, bool] = (0, False)  # whether attention may be summed for the act at that many
        self.policy_state = group.new_policy_state()
        self.most_remembered = 0  # bytes of a policy state that it had to give up
        self.broken = ""  # why its request ends with the step: its policy raised
        self.sample_state: SampleState
        self.text: TextStream
        self.num_shown = 0  # output tokens that are text: all but an end token
        self.cumulative_logprob = 0.0
        self.logprobs: list[TokenLogprob] = []
        self.token_at: float | None = None  # when its newest token was sampled, on the engine's clock
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    # -- what the scheduler sees -----------------------------------------------------------------------------------

    @property
    def priority(self) -> int:
        return self.group.request.priority

    @property
    def arrival(self) -> float:
        return self.group.request.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def chunk_end(self) -> int:
        """No chunk reaches from the prompt into the answer, which are computed in different ways, nor past the next
        act of the policy, also when all of it is recomputed; but what encodes pages within steps does so at any place
        of a chunk.
        """
        if self.plain:
            return self.prompt_len if self.num_computed < self.prompt_len else len(self.tokens)
        return self.asks("saying when it acts", self._chunk_end, lambda: self._part_end)

    @property
    def _part_end(self) -> int:
        """Where acts set no end: that of its tokens, but tokens whose queries are answered each for itself are replayed
        one by one.
        """
        if self.num_computed < self.prompt_len:
            return self.prompt_len
        alone = self.policy.selection is not None or self.policy.leaves_residual
        return self.num_computed + 1 if alone else len(self.tokens)

    def _chunk_end(self) -> int:
        end = self._part_end
        if self.policy.encodes_within:
            return min(self.num_computed + raw_tokens(self.prompt_len), end)
        act = self.next_act(self.num_computed)
        if act is None:
            return end
        first = act - self.policy.window
        if self.prompt_len <= self.num_computed < first and self._may_sum(act):
            act = first  # where the attention that is summed up for the act begins, also when tokens are replayed
        return min(act, end)

    def slots(self, num_tokens: int) -> int:
        if self.plain and self.policy.reach is None:
            return num_tokens
        return self.asks(
            "saying how much it keeps",
            lambda: math.ceil(self.policy.most_slots(num_tokens, self.prompt_len)),
            lambda: num_tokens,
        )

    @property
    def slots_now(self) -> int:
        num_tokens = len(self.tokens)
        if self.plain and self.policy.reach is None:
            return num_tokens
        if self.num_computed >= self.prompt_len:
            return self.slots(num_tokens)
        return self.peak_slots()

    def peak_slots(self, step: int | None = None) -> int:
        """``PolicyStack.peak_slots`` of all its tokens."""
        num_tokens = len(self.tokens)
        return self.asks(
            "saying how much it keeps",
            lambda: self.policy.peak_slots(num_tokens, self.prompt_len, step),
            lambda: num_tokens,
        )

    @property
    def prompt(self) -> list[int]:
        return self.group.request.prompt_ids

    @property
    def max_output(self) -> int | None:
        return self.group.request.params.max_tokens

    @property
    def tenant(self) -> str:
        return self.group.request.tenant

    @property
    def salt(self) -> str:
        return self.group.request.salt

    # -- what the engine sees --------------------------------------------------------------------------------------

    @property
    def policy(self) -> PolicyStack:
        return self.group.request.policy

    def next_act(self, num_seen: int) -> int | None:
        """``PolicyStack.next_act``, asked again only where its answer is over: it is asked several times a step."""
        since, act = self._act
        if num_seen < since or (act is not None and num_seen >= act):
            act = self.act_after(num_seen)
            self._act = num_seen, act
        return act

    def is_left_alone(self, start: int, end: int) -> bool:
        """Whether a step that computes its tokens from ``start`` to before ``end`` neither asks its policy anything nor
        shows it anything: no act is so near.
        """
        if self.plain:
            return True
        policy = self.policy
        if self.broken or policy.in_every_step:
            return False
        if policy.windowed is not None and not (self.store.codes is not None and self.store.codes.in_program):
            return False  # its codec decodes pages, layer by layer, or is asked how it does
        act = self.next_act(start)
        if act is None:
            return not self.broken
        return Need.PROBS not in policy.needs and end <= act - (policy.window or 1)

    def act_after(self, num_seen: int) -> int | None:
        """``PolicyStack.next_act``."""
        return self.asks("saying when it acts", lambda: self.policy.next_act(num_seen, self.prompt_len), lambda: None)

    @property
    def shareable(self) -> int:
        """``PolicyStack.shareable`` of its prompt."""
        return self.asks("saying when it acts", lambda: self.policy.shareable(self.prompt_len), lambda: 0)

    def asks(
        self,
        doing: str,
        question: Callable[[], Answer],
        otherwise: Callable[[], Answer],
        but: type[Exception] | tuple[()] = (),
    ) -> Answer:
        """``question()`` of its policy; ``otherwise()`` where that raises, and ever after: `broken` says why, and its
        request ends with the step. Others go on as if nothing had happened. ``but``: what is not the policy's to raise.
        """
        if not self.broken:
            try:
                return question()
            except but:
                raise
            except Exception as error:
                self.breaks(error, doing)
        return otherwise()

    def breaks(self, error: Exception, doing: str) -> None:
        """Its policy raised ``error``. The client is told what, the log is told where."""
        if not self.broken:
            _log.error("kv=%s broke at %d tokens, %s", self.policy.spelled, self.num_computed, doing, exc_info=error)
            self.broken = f"kv={self.policy.spelled!r} failed, {doing}: {type(error).__name__}: {error}"

    def sums(self, start: int, num_tokens: int) -> bool:
        """Whether attention of these tokens is summed up for the next act of the policy."""
        if not self.policy.sums:
            return False
        act = self.next_act(start)
        return act is not None and self._may_sum(act) and self.policy_state.sums(start, num_tokens, act)

    def _may_sum(self, act: int) -> bool:
        """Where windows do not reach back beyond the act before: what is summed up for one act is gone with it."""
        if self._summed[0] != act:
            after = self.act_after(act) if self.policy.sums else None
            self._summed = act, self.policy.sums and (after is None or after - self.policy.window >= act)
        return self._summed[1]

    @property
    def takes_likeliest(self) -> bool:
        """Whether nothing but the largest logit decides its next token, and nobody else looks at the logits."""
        request = self.group.request
        return self._greedy and request.observer is None and request.teacher is None

    @property
    def prompt_len(self) -> int:
        return self.group.prompt_len

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def forget_kv(self) -> None:
        """Preempted: every token must be computed again, and the policy starts anew."""
        self.num_computed, self.table = 0, None
        self.most_remembered = max(self.most_remembered, self.policy_state.num_bytes)
        self.policy_state = self.group.new_policy_state()


class RequestState:
    """A request under way: its sequences, whose pages lie in ``store``, and what is told to the client."""

    def __init__(self, request: Request, store: Store) -> None:
        self.request, self.store = request, store
        self.prompt_len = len(request.prompt_ids)
        self.sequences: list[Sequence] = []
        self.timing = Timing(request.arrival)
        self.cached_tokens = 0
        self.num_preemptions = 0
        self.peak_kv_bytes = 0
        self.error: str | None = None
        self.no_room = False  # is what the error says
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.pooled: Tensor | None = None  # sum of hidden states so far, float32 [hidden_size]
        self.embedding: list[float] | None = None
        self.finished = False
        self.learn: Callable[[], Mapping[str, Tensor]] = dict  # what its selection, or residual, was calibrated to
        self.rule: FinishRule
        self.beam: BeamGroup | None = None

    @property
    def num_answers(self) -> int:
        """Sequences that are sampled: best_of if given, else n."""
        params = self.request.params
        return params.best_of or params.n

    def new_policy_state(self) -> PolicyState:
        """What the request's policy remembers of a sequence at its beginning: nothing."""
        return PolicyState(self.request.policy, self.store.fmt, self.store.shelves)

    @property
    def held_bytes(self) -> int:
        """KV bytes of all its sequences, raw tokens beside encoded pages among them; shared pages count for each."""
        held = 0
        for sequence in self.sequences:
            if sequence.num_computed and sequence.finish_reason is None:
                held += self.store.manager.held_bytes(sequence.seq_id)
                held += 0 if sequence.plain else sequence.policy_state.tail_bytes
        return held

    @property
    def live(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.finished]


def _is_greedy(group: RequestState) -> bool:
    """Whether the likeliest token is the next of all its sequences, by its params: one answer, unedited, unreported."""
    params = group.request.params
    alone = group.num_answers == 1 and params.beam_width is None
    return alone and params.is_greedy and not params.needs_logprobs and not edits(params)
