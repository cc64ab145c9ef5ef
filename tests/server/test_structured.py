"""``response_format`` and ``tool_choice`` as forms; tools written out for templates that do not know them."""

from __future__ import annotations

import json

import jsonschema
import pytest

from pagoda import Structured
from pagoda.server.errors import ApiError
from pagoda.server.schemas.chat import ChatRequest
from pagoda.server.structured import constraint
from pagoda.server.tool_text import written_out

USER = {"role": "user", "content": "hi"}
TOOLS = [
    {"type": "function", "function": {"name": "f"}},
    {
        "type": "function",
        "function": {
            "name": "tree",
            "parameters": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#"}}, "x": {"$ref": "#/$defs/n"}},
                "required": ["children"],
                "additionalProperties": False,
                "$defs": {"n": {"type": "integer"}},
            },
        },
    },
]


def of(**fields) -> Structured | None:
    body = ChatRequest.model_validate({"messages": [USER]} | fields)
    outputs = body.structured_outputs
    return constraint(
        body.response_format, body.tools, body.tool_choice, body.parallel_tool_calls, outputs=outputs
    ).structured


def test_formats():
    assert of() is None
    assert of(response_format={"type": "text"}) is None
    assert of(response_format={"type": "json_object"}) == Structured(json_object=True)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    assert of(response_format=named) == Structured(json_schema=schema)


def test_a_free_model_is_not_held():
    assert of(tools=TOOLS) is of(tools=TOOLS, tool_choice="auto") is of(tools=TOOLS, tool_choice="none") is None


def test_a_named_tool_is_held_to_its_schema():
    choice = {"type": "function", "function": {"name": "f"}}
    assert of(tools=TOOLS, tool_choice=choice) == Structured(json_schema={"type": "object"})


def test_the_form_of_texts_is_none_of_a_wanted_call():
    assert of(tools=TOOLS, tool_choice="required", response_format={"type": "json_object"}) == of(
        tools=TOOLS, tool_choice="required"
    )


def test_required_is_a_list_of_calls_and_references_still_hold():
    form = of(tools=TOOLS, tool_choice="required")
    validator = jsonschema.Draft202012Validator(json.loads(form.json_schema))
    good = {"name": "tree", "arguments": {"children": [{"children": [], "x": 3}]}}
    assert validator.is_valid([good])
    assert validator.is_valid([good, {"name": "f", "arguments": {"any": 1}}])
    assert not validator.is_valid([])
    assert not validator.is_valid([{"name": "tree", "arguments": {"children": [{"children": [], "x": "3"}]}}])
    assert not validator.is_valid([{"name": "g", "arguments": {}}])
    single = of(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert not jsonschema.Draft202012Validator(json.loads(single.json_schema)).is_valid([good, good])


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice", "no tools to choose from"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "tools are f, tree",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "leave one out",
        ),
    ],
)
def test_contradictions_are_refused(fields, param, says):
    with pytest.raises(ApiError) as error:
        of(**fields)
    assert (error.value.status, error.value.param) == (400, param)
    assert says in error.value.message


def test_tools_are_written_out():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "call f"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    told = written_out(messages, TOOLS)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be kind.\n\n")
    assert '"name": "tree"' in told[0]["content"]
    assert json.loads(told[2]["content"]) == {"name": "f", "arguments": {"x": 1}}
    assert told[3]["content"] == "Result of f: 42"
    assert written_out(messages[1:2], TOOLS)[0]["role"] == "system"
    assert written_out(messages[1:2], None) == messages[1:2]


def test_a_call_and_its_text_keep_both():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
    told = written_out([{"role": "assistant", "content": "Wait.", "tool_calls": [call, call]}], None)
    first, _, rest = told[0]["content"].partition("\n")
    assert (first, len(json.loads(rest))) == ("Wait.", 2)
