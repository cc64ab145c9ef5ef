"""``/v1/messages``: Anthropic's form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .common import Answer, Body, Off, StructuredOutputs


class Ephemeral(Body):
    """Anthropic's cache mark: the prompt is pinned for so long."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Body):
    cache_control: Ephemeral | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: None = None


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: Any = Field(None, description="Comes back from clients; says nothing here.")


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


UserContent = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantContent = Annotated[TextBlock | ToolUseBlock | ThinkingBlock, Field(discriminator="type")]


class UserTurn(Body):
    role: Literal["user"]
    content: str | Annotated[list[UserContent], Field(min_length=1)]


class AssistantTurn(Body):
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantContent], Field(min_length=1)]


Turn = Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]


class AnthropicTool(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Ephemeral | None = None


class AnyTool(Body):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class OneTool(Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ThinkingOn(Body):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Most tokens of thoughts.")


class ThinkingOff(Body):
    type: Literal["disabled"]


class ThinkingAsItLikes(Body):
    """On where the model's template knows thinking at all."""

    type: Literal["adaptive"]


class JsonOutput(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: JsonOutput | None = None
    effort: Literal["low", "medium", "high", "xhigh"] | None = Field(None, description="For templates that know it.")


class UserMetadata(Body):
    user_id: str | None = None


class MessagesFields(Body):
    """What counting and answering have in common."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: Annotated[AnyTool | OneTool, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingOff | ThinkingAsItLikes, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    cache_control: Ephemeral | None = None


class CountRequest(MessagesFields):
    pass


class MessagesRequest(MessagesFields):
    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: Off = False
    metadata: UserMetadata | None = Field(None, description="user_id is part of the log record of this request.")
    service_tier: Literal["auto", "standard_only"] | None = None
    kv: str | None = None
    priority: int | None = None
    cache_salt: str | None = Field(None, max_length=256)
    structured_outputs: StructuredOutputs | None = None


class MessagesUsage(Answer):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class MessagesAnswer(Answer):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessagesUsage


class CountAnswer(Answer):
    input_tokens: int


class AnthropicErrorDetail(Answer):
    type: str
    message: str


class AnthropicError(Answer):
    type: Literal["error"]
    error: AnthropicErrorDetail
