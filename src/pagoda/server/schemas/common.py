"""Fields that several endpoints share. A field that is not listed in a model is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class Body(BaseModel):
    """A request body: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """An answer, for the OpenAPI document; answers are written as plain data."""

    model_config = ConfigDict(extra="forbid")


def or_null(of: Any, default: Any) -> Any:
    """The type ``of`` for a field whose null means the default: OpenAI's clients send the fields that they know."""
    kinds = {bool: "boolean", int: "integer"}
    schema = {"anyOf": [{"type": kinds[of]}, {"type": "null"}], "default": default}
    return Annotated[of, BeforeValidator(lambda value: default if value is None else value), WithJsonSchema(schema)]


Off = or_null(bool, False)
On = or_null(bool, True)


class CacheControl(Body):
    """Keep the KV of this prompt and its answer for later requests with the same beginning."""

    pin: bool = True
    ttl: Annotated[float, Field(gt=0, le=86400)] | None = Field(
        None, description="Seconds; the server's default if null."
    )


class StreamOptions(Body):
    include_usage: Off = False
    include_obfuscation: Literal[False] | None = Field(None, description="Streams are not padded.")


class SamplingFields(Body):
    """How tokens are chosen; ranges are those of ``SamplingParams``."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token id, as text, to the logit added.")
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: Off = False
    min_tokens: int | None = None
    include_stop_str_in_output: Off = False
    skip_special_tokens: On = True
    n: int | None = None


class StructuredOutputs(Body):
    """The form of the answer, by the names that vLLM has for it; exactly one, and ``compact`` for JSON."""

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json", description="A JSON schema, or its text.")
    json_object: Off = False
    regex: str | None = None
    grammar: str | None = Field(None, description="In Lark's notation; its rule start is the answer.")
    choice: list[str] | None = None
    compact: Off = Field(False, description="JSON without whitespace between its parts.")


class PagodaFields(Body):
    """Extensions of Pagoda."""

    kv: str | None = Field(None, description="KV policy of this request, for example exact or snapkv(budget=0.25).")
    priority: int | None = Field(None, description="Lower runs earlier, under the policies priority, classes and edf.")
    cache_salt: str | None = Field(None, max_length=256, description="Requests with other salts share no prefix.")
    cache_control: CacheControl | None = None
    structured_outputs: StructuredOutputs | None = None


class PromptTokensDetails(Answer):
    cached_tokens: int


class UsageAnswer(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class MetricsAnswer(Answer):
    """Seconds and bytes of one request. ``kv_bytes_held``: what stays pinned after it."""

    queue_seconds: float | None
    prefill_seconds: float | None
    first_token_seconds: float | None
    per_token_seconds: float | None
    total_seconds: float | None
    kv_bytes_peak: int
    kv_bytes_held: int
    preemptions: int


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    error: ErrorDetail


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Metadata = dict[str, Any]
