"""``response_format``, ``structured_outputs``, ``tools`` and ``tool_choice``: the form that an answer is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..sampling.structured import Structured
from .errors import bad
from .strict import free_until_called

if TYPE_CHECKING:
    from .service import Service

_ANYTHING: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer is held to, if anything; ``whole``: from its first character, with no thoughts before it."""

    structured: Structured | None = None
    whole: bool = False


def constraint(
    response_format: Any, tools: Sequence[Any] | None = None, tool_choice: Any = None,
    parallel_tool_calls: bool | None = None, *, outputs: Any = None, service: Service | None = None,
) -> Form:  # fmt: skip
    """For the bodies of a request; ``outputs`` is its ``structured_outputs``; ``service`` where there may be tools.
    Where a call is wanted no text is written, and ``response_format``, the form of texts, has nothing to hold.

    Raises ApiError where they contradict each other.
    """
    form = response_form(response_format)
    if outputs is not None:
        if form is not None:
            raise bad("structured_outputs", "structured_outputs and response_format both hold the answer; give one")
        form = named_form(outputs)
    calls = tool_form(tools, tool_choice, parallel_tool_calls)
    if calls is not None and outputs is not None:
        raise bad(
            "structured_outputs", "structured_outputs hold the answer and tool_choice wants a call; leave one out"
        )
    if service is not None and tools and tool_choice in (None, "auto"):
        return Form(free_until_called(service, tools, parallel_tool_calls is not False, form), form is not None)
    wanted = calls or form
    return Form(wanted, wanted is not None)


def named_form(outputs: Any) -> Structured:
    """The form that ``structured_outputs`` names. Raises ApiError unless it is exactly one."""
    try:
        return Structured(
            json_schema=outputs.json_, json_object=outputs.json_object, regex=outputs.regex, grammar=outputs.grammar,
            choice=outputs.choice, compact=outputs.compact,
        )  # fmt: skip
    except ConfigError as error:
        raise bad("structured_outputs", f"structured_outputs: {error}") from error


def response_form(response_format: Any) -> Structured | None:
    """The form that ``response_format`` names; None for text. A schema is enforced whether ``strict`` is set or not."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return Structured(json_object=True)
    schema = response_format.json_schema.schema_
    return Structured(json_schema=schema) if schema is not None else Structured(json_object=True)


def tool_form(tools: Sequence[Any] | None, tool_choice: Any, parallel: bool | None) -> Structured | None:
    """``required``: a list of calls; a named tool: its arguments; None where the model is free.

    Raises ApiError for a choice without tools, or of a tool that is not there.
    """
    if tool_choice in (None, "none", "auto"):
        return None
    if not tools:
        raise bad("tool_choice", "tool_choice: there are no tools to choose from")
    if tool_choice == "required":
        return Structured(json_schema=_calls_schema([tool.function for tool in tools], parallel is not False))
    return Structured(json_schema=_parameters(named_tool(tools, tool_choice.function.name)))


def named_tool(tools: Sequence[Any], name: str) -> Any:
    """The function of that name. Raises ApiError listing those that there are."""
    for tool in tools:
        if tool.function.name == name:
            return tool.function
    names = ", ".join(tool.function.name for tool in tools)
    raise bad("tool_choice", f"tool_choice names {name!r}; tools are {names}")


def _calls_schema(functions: Sequence[Any], parallel: bool) -> dict[str, Any]:
    """A list of calls. Each tool's schema keeps its inner references: it moves into ``$defs`` as a whole."""
    definitions = {
        f"tool{index}": _moved(_parameters(function), f"#/$defs/tool{index}")
        for index, function in enumerate(functions)
    }
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function.name}, "arguments": {"$ref": f"#/$defs/tool{index}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, function in enumerate(functions)
    ]
    return {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": definitions} | (
        {} if parallel else {"maxItems": 1}
    )


def _parameters(function: Any) -> dict[str, Any]:
    """The schema of the arguments: an object, whatever else it says."""
    return _ANYTHING | (function.parameters or {})


def _moved(schema: Any, where: str) -> Any:
    """A schema whose references to its own root point to ``where``."""
    if isinstance(schema, dict):
        return {
            key: where + value[1:] if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, where)
            for key, value in schema.items()
        }  # fmt: skip
    return [_moved(each, where) for each in schema] if isinstance(schema, list) else schema
