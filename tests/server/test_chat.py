"""``/v1/chat/completions`` over plain HTTP; the official clients are in test_clients.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Running

HELLO = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 12, "temperature": 0}


def ask(server: Running, **changes: Any) -> Any:
    done = server.post("/v1/chat/completions", HELLO | changes)
    assert done.status_code == 200, done.text
    return done.json()


def events(server: Running, **changes: Any) -> list[Any]:
    with server.http.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True} | changes) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line for line in answer.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_an_answer_is_that_of_the_engine(server: Running) -> None:
    answer = ask(server)
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    llm = server.service.llm
    ids = llm.tokenizer.encode(llm.chat_template.render(HELLO["messages"]), add_special_tokens=False)
    same = server.post("/v1/completions", {"prompt": ids, "max_tokens": 12, "temperature": 0}).json()
    assert message["content"] == same["choices"][0]["text"]
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_stream_says_the_same(server: Running) -> None:
    chunks = events(server, n=2, stream_options={"include_usage": True})
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts == [ask(server)["choices"][0]["message"]["content"]] * 2
    assert reasons == ["length", "length"]
    assert chunks[-1]["usage"]["completion_tokens"] == 24
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def test_parts_roles_and_logprobs(server: Running) -> None:
    whole = ask(server)
    parts = [{"type": "text", "text": "Tell me a story."}]
    assert ask(server, messages=[{"role": "user", "content": parts}])["choices"] == whole["choices"]
    system = [{"role": "system", "content": "Be kind."}, *HELLO["messages"]]
    developer = [{"role": "developer", "content": "Be kind."}, *HELLO["messages"]]
    assert ask(server, messages=system)["choices"] == ask(server, messages=developer)["choices"]
    logprobs = ask(server, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(logprobs) == 12
    assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)
    text = b"".join(bytes(entry["bytes"]) for entry in logprobs).decode()
    assert text == whole["choices"][0]["message"]["content"]
    streamed = [c["choices"][0]["logprobs"] for c in events(server, logprobs=True, top_logprobs=2)]
    assert [entry for part in streamed if part for entry in part["content"]] == logprobs


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.user.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"store": True}, "store"),
        ({"functions": []}, "functions"),
    ],
)
def test_what_is_refused_is_named(server: Running, changes: dict[str, Any], param: str | None) -> None:
    done = server.post("/v1/chat/completions", HELLO | changes)
    error = done.json()["error"]
    assert (done.status_code, error["type"]) == (400, "invalid_request_error"), done.text
    if param is not None:
        assert error["param"] == param


def test_a_part_of_another_kind_is_named_alone(server: Running) -> None:
    """Not as text that is no string, and fields that text has not."""
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    error = server.post("/v1/chat/completions", HELLO | {"messages": [{"role": "user", "content": parts}]}).json()
    assert error["error"]["message"] == "messages.0.user.content.1: type is 'image_url'; accepted: 'text'"
    assert error["error"]["param"] == "messages.0.user.content.1"


def test_a_body_without_its_content_type(server: Running) -> None:
    """As ``curl -d`` sends it when nobody names a header."""
    done = server.http.post("/v1/chat/completions", content=b'{"model": "lantern"}',
                            headers={"Content-Type": "application/x-www-form-urlencoded"})  # fmt: skip
    assert done.status_code == 400
    assert done.json()["error"]["message"].startswith("the body is no JSON object; send one, with the header Content-")
