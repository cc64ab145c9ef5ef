"""What holds for every parser in the two registries: cuts do not matter, nothing is lost."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.server.parsers import REASONING_PARSERS, TOOL_PARSERS
from pagoda.server.parsers.pieces import Content, Parser, Reasoning, ToolArguments, ToolStart, joined
from pagoda.server.parsers.pipeline import Pipeline, reasoning_parser, tool_parser

TOOLS = ("get_weather", "f")
CALL = '{"name": "get_weather", "arguments": {"city": "Pa\\"ris {é}", "n": [1, -2.5e3, null]}}'
PARTS = [
    CALL, '{"arguments": {"a": {}}, "name": "f"}', '{"name": "f"}', '{"name": "f", "parameters": {"x": true}, "id": 3}',
    '{"name": "unknown", "arguments": {}}', '{"name": "f", "arguments": "{\\"x\\": 1}"}', '{"name": 3}', '{"a": 01}',
    '{"name": "f", "arguments": {"x": ', '{"name": "f", "arguments": {"x": nope}}', "{", "}", "[", "]", "{}", "[]", '"',
    "<tool_call>", "</tool_call>", "<tool_", "<think>", "</think>", "</thi", "<", "[TOOL_CALLS]", "[TOOL", "[ARGS]",
    "get_weather", "f", "<|python_tag|>", "<|python", "<|channel|>", "analysis", "final", "commentary to=functions.f ",
    "<|message|>", "<|end|>", "<|call|>", "<|start|>", "assistant", " ", "\n", "\n\n", ";", ",", "hello", "é😀", "a b",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=9).map("".join)

MAKERS = {f"tools-{name}": lambda name=name: tool_parser(name, TOOLS) for name in TOOL_PARSERS.names()}
MAKERS |= {f"reasoning-{name}": lambda name=name: reasoning_parser(name, "") for name in REASONING_PARSERS.names()}
MAKERS |= {
    f"reasoning-{name}-inside": lambda name=name: reasoning_parser(name, "<think>\n")
    for name in REASONING_PARSERS.names()
}
MAKERS["both"] = lambda: Pipeline(reasoning_parser("think", ""), tool_parser("hermes", TOOLS))


def parse(parser: Parser, pieces: list[str]):
    return joined([out for piece in pieces for out in parser.push(piece)] + parser.flush())


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("kind", MAKERS)
@settings(deadline=None, max_examples=150)
@given(text=TEXTS, places=st.lists(st.integers(0, 10**6), max_size=12))
def test_cuts_do_not_matter_and_nothing_is_lost(kind: str, text: str, places: list[int]) -> None:
    whole = parse(MAKERS[kind](), [text])
    assert parse(MAKERS[kind](), cut(text, places)) == whole
    assert parse(MAKERS[kind](), list(text)) == whole
    check_calls(whole)
    said = "".join(piece.text for piece in whole if isinstance(piece, (Content, Reasoning)))
    assert is_subsequence(said, text)
    if all(isinstance(piece, Content) for piece in whole) and "<think>" not in text and "</think>" not in text:
        if kind == "reasoning-gpt_oss" or kind.endswith("inside"):
            return  # their marks are not shown
        assert said == text
    if kind.startswith("tools-") or kind == "both":
        assert_little_is_hidden(text, whole, said)


def check_calls(pieces) -> None:
    """Indices count up, arguments follow their start."""
    starts = [piece.index for piece in pieces if isinstance(piece, ToolStart)]
    assert starts == list(range(len(starts)))
    for piece in pieces:
        if isinstance(piece, ToolArguments):
            assert piece.index in starts


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(char in rest for char in part)


def assert_little_is_hidden(text: str, pieces, said: str) -> None:
    """Letters that no piece tells are those of markup: tags, and the keys and other members of calls."""
    shown = said + "".join(p.name if isinstance(p, ToolStart) else getattr(p, "text", "") for p in pieces)
    num_calls = sum(isinstance(piece, ToolStart) for piece in pieces)
    hidden = sum(c.isalnum() for c in text) - sum(c.isalnum() for c in shown)
    assert hidden <= 45 * num_calls + 20 * text.count("think>")


@pytest.mark.parametrize("kind", MAKERS)
def test_plain_text_passes_through_at_once(kind: str) -> None:
    parser = MAKERS[kind]()
    if kind == "reasoning-think-inside":
        assert parse(parser, ["a thought"]) == [Reasoning("a thought")]
        return
    assert joined(parser.push("It is 5 o'clock.")) == [Content("It is 5 o'clock.")]
    assert joined(parser.push(" And {so} on")) == [Content(" And {so} on")]


def test_arguments_are_json_when_calls_are_complete() -> None:
    for name in TOOL_PARSERS.names():
        wrap = {"hermes": "<tool_call>%s</tool_call>", "mistral": "[TOOL_CALLS][%s]"}.get(name, "%s")
        for part in (CALL, '{"arguments": {"a": {}}, "name": "f"}', '{"name": "f"}'):
            pieces = parse(tool_parser(name, TOOLS), [wrap % part])
            assert isinstance(pieces[0], ToolStart)
            assert isinstance(json.loads("".join(p.text for p in pieces if isinstance(p, ToolArguments))), dict)
            assert not any(isinstance(piece, Content) for piece in pieces), (name, part)
