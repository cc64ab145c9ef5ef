"""``/v1/embeddings``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .common import Answer, Body, MetricsAnswer
from .completions import Prompt


class EmbeddingRequest(Body):
    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="The first so many, normalized anew.")
    pooling: Literal["mean", "last"] = Field("mean", description="Over the hidden states of the prompt's tokens.")
    priority: int | None = None
    cache_salt: str | None = Field(None, max_length=256)
    user: str | None = Field(None, description="Part of the log record of this request.")


class EmbeddingItem(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
    metrics: MetricsAnswer
