"""``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .common import Answer, FinishReason, MetricsAnswer, PagodaFields, SamplingFields, StreamOptions, UsageAnswer

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Prompt = str | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)] | Annotated[
    list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)
]  # fmt: skip


class CompletionRequest(SamplingFields, PagodaFields):
    prompt: Prompt
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    best_of: int | None = None
    suffix: str | None = Field(None, description="Only for models with infilling tokens.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted and not used.")


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
