"""What the soak of the HTTP APIs compares: a stream read as its whole answer, and where two answers differ."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from benchmarks.api_answers import alike, told
from benchmarks.api_work import Ask, draw


def stream(*events: dict[str, Any], done: bool = True) -> bytes:
    parts = [f"data: {json.dumps(one)}\n\n" for one in events] + (["data: [DONE]\n\n"] if done else [])
    return "".join(parts).encode()


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}


CHAT = Ask("/v1/chat/completions", {})
STREAMED = Ask("/v1/chat/completions", {"stream": True})


def call(at: int, **function: str) -> dict[str, Any]:
    return {"index": at, "id": "y", "type": "function", "function": function}


def test_chunks_are_read_as_the_whole_answer() -> None:
    message = {
        "role": "assistant", "content": "ab",
        "tool_calls": [{"id": "z", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
    }  # fmt: skip
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    whole = json.dumps({"id": "w", "choices": [choice]}).encode()
    news = [chunk(content="a"), chunk(content="b"), chunk(tool_calls=[call(0, name="add", arguments='{"a"')])]
    told_in_parts = stream(*news, chunk("tool_calls", tool_calls=[call(0, arguments=": 1}")]))
    assert alike(told(STREAMED, told_in_parts), told(CHAT, whole)) == ""
    other = whole.replace(b'"ab"', b'"ac"')
    assert "text" in alike(told(STREAMED, told_in_parts), told(CHAT, other))


@pytest.mark.parametrize("answer", [
    stream(chunk(content="a"), done=False),
    stream(chunk(content="a"), {"error": {"message": "broken"}}),
])  # fmt: skip
def test_a_stream_that_does_not_end_is_told(answer: bytes) -> None:
    with pytest.raises(ValueError, match="DONE|broken"):
        told(STREAMED, answer)


def test_numbers_may_differ_by_rounding_and_nothing_else_may() -> None:
    assert alike({"a": [1.0, None]}, {"a": [1.000001, None]}) == ""
    assert alike({"a": [1.0]}, {"a": [1.001]}) == "a: 0: 1.0 alone 1.001"
    assert alike([1], [1, 2]).startswith("1 things")
    assert "keys" in alike({"a": 1}, {"b": 1})


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    drawn = [[draw(rng, 1.0, offloads=True) for _ in range(60)] for rng in (random.Random(3), random.Random(3))]
    assert [repr(one) for one in drawn[0]] == [repr(one) for one in drawn[1]]
    assert {one.kind for one in drawn[0]} == {"good", "left", "odd", "broken"}
    assert all(one.data() for one in drawn[0] if one.kind == "good")
