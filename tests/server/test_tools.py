"""Tools and forms through the official clients: parse with pydantic, forced calls, streamed arguments."""

from __future__ import annotations

import asyncio
import json

import anthropic
import openai
import pytest
from pydantic import BaseModel

from .conftest import Running

ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Looks it up.", "parameters": SCHEMA}}


class Animal(BaseModel):
    kind: bool
    legs: int


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


def well_formed(arguments: str) -> bool:
    value = json.loads(arguments)
    return value["city"] in ("Rome", "Oslo") and 1 <= value["days"] <= 9 and set(value) == {"city", "days"}


def test_parse_with_pydantic(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="lantern", messages=ASK, response_format=Animal, max_tokens=200, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Animal)
    response = client.responses.parse(
        model="lantern", input="A fox.", text_format=Animal, max_output_tokens=200, temperature=0
    )
    assert isinstance(response.output_parsed, Animal)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_come_and_its_stream(client: openai.OpenAI, choice: object) -> None:
    options = {
        "model": "lantern", "messages": ASK, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False,
        "max_tokens": 200, "temperature": 0,
    }  # fmt: skip
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert well_formed(call.function.arguments)
    assert whole.choices[0].message.content is None
    arguments, names, pieces = "", [], 0
    for chunk in client.chat.completions.create(stream=True, **options):
        for delta in chunk.choices[0].delta.tool_calls or ():
            names += [delta.function.name] if delta.function.name else []
            arguments, pieces = arguments + (delta.function.arguments or ""), pieces + 1
    assert names == ["weather"]
    assert json.loads(arguments) == json.loads(call.function.arguments)
    assert pieces > 2
    history = [*ASK, whole.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    after = client.chat.completions.create(
        model="lantern", messages=history, tools=[TOOL], tool_choice="none", max_tokens=8
    )
    assert after.choices[0].message.content is not None
    assert after.choices[0].message.tool_calls is None


def brace(server: Running) -> dict[str, float]:
    """A bias that lets lantern begin with a brace, as a call does; later braces stay possible."""
    tokenizer = server.service.llm.tokenizer
    return {str(tokenizer.encode("{", add_special_tokens=False)[-1]): 100.0}


def test_a_strict_tool_holds_a_call_that_the_model_is_free_to_make(server: Running, client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True}}
    options = {"model": "lantern", "messages": ASK, "max_tokens": 120, "temperature": 0}
    free = client.chat.completions.create(**options, tools=[strict]).choices[0]
    assert free.message.content == client.chat.completions.create(**options, tools=[TOOL]).choices[0].message.content
    called = client.chat.completions.create(**options, tools=[strict], logit_bias=brace(server)).choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert well_formed(call.function.arguments)
    streamed = ""
    for chunk in client.chat.completions.create(**options, tools=[strict], logit_bias=brace(server), stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            streamed += delta.function.arguments or ""
    assert well_formed(streamed)


def test_a_form_beside_tools_leaves_room_for_calls(server: Running, client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": Animal.model_json_schema()}}
    options = {"model": "lantern", "messages": ASK, "max_tokens": 100, "temperature": 0, "response_format": form}
    answer = client.chat.completions.create(**options, tools=[TOOL]).choices[0].message
    assert answer.tool_calls or Animal.model_validate_json(answer.content)
    done = server.post(
        "/v1/chat/completions", {"messages": ASK, "tools": [TOOL], "structured_outputs": {"regex": "[0-9]+"}}
    )
    assert (done.status_code, done.json()["error"]["param"]) == (400, "structured_outputs")


def test_calls_as_items_of_a_response(client: openai.OpenAI) -> None:
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    response = client.responses.create(
        model="lantern", input="Rome?", tools=[tool], tool_choice="required", max_output_tokens=200, temperature=0
    )
    call = next(item for item in response.output if item.type == "function_call")
    assert well_formed(call.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    after = client.responses.create(
        model="lantern", input=[output], previous_response_id=response.id, max_output_tokens=8
    )
    assert after.output_text


def test_anthropic_tools(server: Running) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        tools = [{"name": "weather", "description": "Looks it up.", "input_schema": SCHEMA}]
        options = {"model": "lantern", "max_tokens": 200, "messages": ASK, "tools": tools}
        message = client.messages.create(tool_choice={"type": "tool", "name": "weather"}, **options)
        (block,) = message.content
        assert (message.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
        assert well_formed(json.dumps(block.input))
        with client.messages.stream(tool_choice={"type": "any"}, **options) as stream:
            final = stream.get_final_message()
        assert final.content[0].type == "tool_use"
        assert well_formed(json.dumps(final.content[0].input))
        history = [
            *ASK,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "Sunny."}]},
        ]
        assert client.messages.create(model="lantern", max_tokens=8, messages=history).content


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            None,
        ),
    ],
)
def test_what_is_refused(server: Running, changes: dict, param: str | None) -> None:
    done = server.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 4} | changes)
    assert done.status_code == 400, done.text
    if param:
        assert done.json()["error"]["param"] == param


class Weather(BaseModel):
    """Looks it up."""

    windy: bool


def test_the_async_client_parses_forms_and_tools(server: Running) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            options = {"model": "lantern", "messages": ASK, "max_tokens": 200, "temperature": 0}
            answer = await client.chat.completions.parse(response_format=Animal, **options)
            assert isinstance(answer.choices[0].message.parsed, Animal)
            tool = openai.pydantic_function_tool(Weather)
            called = await client.chat.completions.parse(
                tools=[tool], tool_choice="required", parallel_tool_calls=False, **options
            )
            assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
            async with client.chat.completions.stream(
                tools=[tool], tool_choice="required", parallel_tool_calls=False, **options
            ) as stream:
                kinds = {event.type async for event in stream}
                final = await stream.get_final_completion()
            assert "tool_calls.function.arguments.done" in kinds
            assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
            async with client.responses.stream(
                model="lantern", input="A fox.", text_format=Animal, max_output_tokens=200, temperature=0
            ) as events:
                seen = {event.type async for event in events}
                response = await events.get_final_response()
            assert "response.output_text.delta" in seen
            assert isinstance(response.output_parsed, Animal)
            raw = await client.chat.completions.with_raw_response.create(**options | {"max_tokens": 2})
            assert raw.headers["x-request-id"]
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**options | {"temperature": 9000})

    asyncio.run(ask())


def test_the_async_client_of_anthropic(server: Running) -> None:
    async def ask() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="x", max_retries=0) as client:
            tools = [{"name": "weather", "description": "Looks it up.", "input_schema": SCHEMA}]
            options = {"model": "lantern", "max_tokens": 200, "messages": ASK}
            plain = await client.messages.create(**options | {"max_tokens": 4})
            assert plain.content[0].type == "text"
            async with client.messages.stream(
                tools=tools, tool_choice={"type": "tool", "name": "weather"}, **options
            ) as stream:
                kinds = {event.type async for event in stream}
                final = await stream.get_final_message()
            assert "input_json" in kinds
            assert well_formed(json.dumps(final.content[0].input))
            with pytest.raises(anthropic.BadRequestError):
                await client.messages.create(**options, extra_body={"temperature": 9.0e9})

    asyncio.run(ask())
