"""``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .chat import ResponseFormat
from .common import (
    Answer,
    FinishReason,
    MetricsAnswer,
    Off,
    PagodaFields,
    SamplingFields,
    StreamOptions,
    UsageAnswer,
    or_null,
)

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Prompt = str | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)] | Annotated[
    list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)
]  # fmt: skip


class CompletionRequest(SamplingFields, PagodaFields):
    prompt: Prompt
    model: str | None = None
    max_tokens: Annotated[or_null(int, 16), Field(ge=0)] = 16
    echo: Off = False
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    best_of: int | None = None
    suffix: str | None = Field(None, description="Only for models with infilling tokens.")
    response_format: ResponseFormat | None = None
    stream: Off = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Part of the log record of this request.")


class CompletionLogprobsAnswer(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobsAnswer | None
    finish_reason: FinishReason | None


class CompletionAnswer(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer
    metrics: MetricsAnswer
