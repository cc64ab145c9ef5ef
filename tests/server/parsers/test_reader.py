"""Pieces as the endpoints tell them: ids, names and arguments in OpenAI's places."""

from __future__ import annotations

from pagoda.server.parsers.base import Delta
from pagoda.server.parsers.pipeline import Pipeline, reasoning_parser, tool_parser
from pagoda.server.parsers.reader import Reader, new_call_id


def test_ids_come_once_and_arguments_grow():
    reader = Reader(Pipeline(reasoning_parser("think", ""), tool_parser("hermes", ["f"])))
    assert not reader.special
    text = '<think>hm</think>Yes.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    whole = Delta()
    ids = []
    for char in text:
        delta = reader.push(char)
        whole.content += delta.content
        whole.reasoning += delta.reasoning
        whole.tool_calls += delta.tool_calls
        ids += [call.id for call in delta.tool_calls if call.id is not None]
    assert not reader.finish()
    assert (whole.content, whole.reasoning) == ("Yes.", "hm")
    assert len(ids) == 1
    assert [call.name for call in whole.tool_calls if call.name] == ["f"]
    assert "".join(call.arguments for call in whole.tool_calls) == '{"a": 1}'
    assert {call.index for call in whole.tool_calls} == {0}


def test_formats_in_special_tokens_say_so():
    assert Reader(tool_parser("mistral", [])).special
    assert Reader(Pipeline(reasoning_parser("gpt_oss", ""), None)).special


def test_call_ids_are_what_mistral_insists_on():
    made = {new_call_id() for _ in range(200)}
    assert len(made) == 200
    assert all(len(each) == 9 and each.isalnum() for each in made)
