"""When a sequence is over by its tokens: end of sequence, stop ids, length. (By its text: `stop`.) No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pagoda.core.types import FinishReason

from .params import SamplingParams

Cause = Literal["eos", "stop_token", "stop_string", "structure", "max_tokens", "context"]


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sequence ended. ``stop`` is the stop id or string that matched; None for the model's own end and length."""

    reason: FinishReason
    cause: Cause
    stop: int | str | None = None

    @classmethod
    def at_stop_string(cls, stop: str) -> Finish:
        """The finish that goes with `StopCheck.stop`."""
        return cls(FinishReason.STOP, "stop_string", stop)

    @classmethod
    def at_structure_end(cls) -> Finish:
        """The structure is complete and nothing can follow it: as good as an end of sequence, one step earlier."""
        return cls(FinishReason.STOP, "structure")


class FinishRule:
    """The token-level end of a request's sequences; the same for all of them."""

    __slots__ = ("_eos_ids", "_limit", "_limit_cause", "_min_tokens", "_stop_ids")

    def __init__(self, params: SamplingParams, eos_ids: Iterable[int], *, prompt_len: int, max_model_len: int) -> None:
        self._eos_ids = frozenset() if params.ignore_eos else frozenset(eos_ids)
        self._stop_ids = frozenset(params.stop_token_ids or ())
        self._min_tokens = params.min_tokens
        self._limit = output_limit(params, prompt_len=prompt_len, max_model_len=max_model_len)
        self._limit_cause: Cause = "max_tokens" if self._limit == params.max_tokens else "context"

    @property
    def limit(self) -> int:
        """Most tokens that a sequence can generate."""
        return self._limit

    def check(self, token_id: int, num_output: int) -> Finish | None:
        """Whether ``token_id``, the sequence's token number ``num_output`` (1 for the first), ends it.

        An end id beats the length: a sequence whose last allowed token is the end of sequence did stop.
        """
        if num_output > self._min_tokens:
            if token_id in self._stop_ids:
                return Finish(FinishReason.STOP, "stop_token", token_id)
            if token_id in self._eos_ids:
                return Finish(FinishReason.STOP, "eos")
        return Finish(FinishReason.LENGTH, self._limit_cause) if num_output >= self._limit else None


def output_limit(params: SamplingParams, *, prompt_len: int, max_model_len: int) -> int:
    """Tokens that a sequence may generate: max_tokens, or what the context leaves after the prompt if that is less."""
    room = max_model_len - prompt_len
    return room if params.max_tokens is None else min(params.max_tokens, room)
