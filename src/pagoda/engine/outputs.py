"""What a caller gets back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.types import FinishReason
from ..sampling.logprobs import TokenLogprob

if TYPE_CHECKING:
    from .text import TextStream


@dataclass(slots=True)
class Usage:
    """Token counts of one request; ``cached_tokens`` of the prompt were found in the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class KVMemory:
    """KV bytes of one request: the most it held at once, and what it holds now (0 once it ended)."""

    peak: int
    held: int


@dataclass(slots=True)
class Completion:
    """One answer of a request. ``delta`` is the text since the last output, for streaming."""

    index: int
    text: str
    token_ids: list[int]
    delta: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprob] | None = None
    untold: TextStream | None = field(default=None, repr=False, compare=False)
    """Where the text comes from, until it was told."""
    num_shown: int = field(default=0, repr=False, compare=False)
    """Tokens that are text: an end token is not."""

    def tell(self) -> None:
        """The tokens become text."""
        if self.untold is not None:
            ended, stream = self.finish_reason is not None, self.untold
            self.untold = None
            self.text, self.delta = stream.read(self.token_ids[: self.num_shown], ended=ended)


@dataclass(slots=True)
class Timing:
    """Seconds on the engine's clock. ``first_token`` is None until there is one."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """The state of a request after a step; the shortcuts read its first (best) answer.

    ``no_room``: the ``error`` is that the budget does not hold this request; only a smaller one, or more budget, helps.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    usage: Usage
    memory: KVMemory
    timing: Timing
    finished: bool
    error: str | None = None
    no_room: bool = False
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_preemptions: int = 0
    embedding: list[float] | None = None

    def tell(self) -> RequestOutput:
        """Make the texts where the engine left them to its reader; itself. Outputs of one request are told in order,
        by one thread at a time.
        """
        for answer in self.outputs:
            answer.tell()
        return self

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def delta(self) -> str:
        return self.outputs[0].delta

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.outputs[0].logprobs
