"""Thoughts of a model apart from its answer, and bounded where a request says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anthropic
import openai
import pytest

from pagoda.engine.async_llm import AsyncLLM
from pagoda.server.parsers.reasoning.think import BOUNDS

from .conftest import OPTIONS, Running, running

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
ASK = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def thinker() -> Iterator[Running]:
    """lantern in a template that opens thoughts; it never ends them by itself."""
    llm = AsyncLLM("lantern", **OPTIONS | {"kv_memory": "16MiB", "chat_template": TEMPLATE})
    with running(llm) as server:
        yield server
    asyncio.run(llm.close())


@pytest.mark.parametrize("budget", [1, 5, 20])
def test_a_chat_stops_thinking_in_time(thinker: Running, budget: int) -> None:
    body = {"messages": ASK, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    free = thinker.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    assert free["content"] == ""
    message = thinker.post("/v1/chat/completions", body | {"thinking_token_budget": budget}).json()["choices"][0][
        "message"
    ]
    assert message["content"]
    thought = thinker.service.llm.tokenizer.encode(message["reasoning_content"], False)
    assert abs(len(thought) - budget) <= 1  # white space beside the marks is neither
    assert free["reasoning_content"].startswith(message["reasoning_content"])
    assert "think>" not in message["content"]


def test_budget_tokens_of_anthropic(thinker: Running) -> None:
    with anthropic.Anthropic(base_url=thinker.url, api_key="x", max_retries=0) as client:
        options = {"model": "lantern", "max_tokens": 40, "messages": ASK, "extra_body": {"temperature": 0}}
        thinking = {"type": "enabled", "budget_tokens": 8}
        message = client.messages.create(thinking=thinking, **options)
        assert [block.type for block in message.content] == ["thinking", "text"]
        with client.messages.stream(thinking=thinking, **options) as stream:
            assert [block.type for block in stream.get_final_message().content] == ["thinking", "text"]
        off = client.messages.create(thinking={"type": "disabled"}, **options)
        assert [block.type for block in off.content] == ["text"]
        with pytest.raises(anthropic.BadRequestError, match="leave room"):
            client.messages.create(thinking={"type": "enabled", "budget_tokens": 40}, **options)


def test_responses_count_their_thoughts(thinker: Running) -> None:
    client = openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="x", max_retries=0)
    response = client.responses.create(
        model="lantern",
        input="Tell me a story.",
        max_output_tokens=40,
        temperature=0,
        extra_body={"thinking_token_budget": 6},
    )
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage is not None
    assert 4 <= response.usage.output_tokens_details.reasoning_tokens <= 8


def test_a_closed_thought_is_not_closed_again(thinker: Running) -> None:
    body = {"messages": ASK, "max_tokens": 30, "temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    plain = thinker.post("/v1/chat/completions", body).json()["choices"]
    assert thinker.post("/v1/chat/completions", body | {"thinking_token_budget": 5}).json()["choices"] == plain
    assert BOUNDS[1] not in plain[0]["message"]["content"]


def test_what_cannot_be_bounded_is_refused(thinker: Running, server: Running) -> None:
    body = {"messages": ASK, "max_tokens": 4, "thinking_token_budget": 3}
    held = body | {"response_format": {"type": "json_object"}}
    for where, asked in ((server, body), (thinker, held)):
        done = where.post("/v1/chat/completions", asked)
        assert (done.status_code, done.json()["error"]["param"]) == (400, "thinking_token_budget")
