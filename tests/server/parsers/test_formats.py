"""Each format as its models write it: streams of arguments, several calls, text around, and what goes wrong."""

from __future__ import annotations

import json

import pytest

from pagoda import ConfigError
from pagoda.server.parsers._json import JsonAutomaton
from pagoda.server.parsers._named import NamedCall
from pagoda.server.parsers.pieces import Content, Reasoning, ToolArguments, ToolStart
from pagoda.server.parsers.pipeline import (
    Pipeline,
    choose_reasoning_parser,
    choose_tool_parser,
    knows_tools,
    reasoning_parser,
    tool_parser,
)

from .test_conformance import TOOLS, parse

PARIS = '{"city": "Paris"}'
W0, W1 = (ToolStart(0, "get_weather"), ToolArguments(0, PARIS)), (ToolStart(1, "f"), ToolArguments(1, "{}"))
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
F = '{"name": "f", "arguments": {}}'
LLAMA = '{"name": "get_weather", "parameters": {"city": "Paris"}}'

GOOD = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", [*W0]),
    ("hermes", f"See.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{F}</tool_call>\n", [Content("See."), *W0, *W1]),
    ("hermes", f"<tool_call>{CALL}\n{F}</tool_call> done", [*W0, *W1, Content(" done")]),
    ("hermes", f"<tool_call>{CALL}", [*W0]),
    ("llama3", LLAMA, [*W0]),
    ("llama3", f"<|python_tag|>{LLAMA}; {F}", [*W0, *W1]),
    ("llama3", f"Sure: <|python_tag|>{LLAMA}", [Content("Sure:"), *W0]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {F}]", [*W0, *W1]),
    ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]f{{}}", [*W0, *W1]),
    ("mistral", f"Hm. [TOOL_CALLS]{CALL}", [Content("Hm."), *W0]),
    ("json", CALL, [*W0]),
    ("json", f"  [{CALL},\n {F}]\n", [*W0, *W1]),
    ("json", f"{CALL}\nThat is it.", [*W0, Content("\nThat is it.")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "pieces"), GOOD)
def test_calls(name, text, pieces):
    assert parse(tool_parser(name, TOOLS), [text]) == pieces


PLAIN = [
    ("hermes", "<tool_call>hello</tool_call>"),
    ("hermes", '<tool_call>{"nom": "f"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
    ("hermes", "a < b and <tool"),
    ("llama3", '{"name": "unknown", "parameters": {}}'),
    ("llama3", f"The call is {LLAMA}"),
    ("llama3", '<|python_tag|>brave_search.call(query="x")'),
    ("mistral", "[TOOL_CALLS] nothing here"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS]get_weather[ARG"),
    ("json", '{"answer": 42}'),
    ("json", "[1, 2, 3]"),
    ("json", '{"name": "get_weather"'),
]


@pytest.mark.parametrize(("name", "text"), PLAIN)
def test_what_is_no_call_is_content(name, text):
    assert parse(tool_parser(name, TOOLS), [text]) == [Content(text)]


def test_arguments_stream_as_they_come():
    parser = tool_parser("hermes", TOOLS)
    assert parser.push('<tool_call>{"name": "f", "argu') == []
    assert parser.push('ments": {"x"') == [ToolStart(0, "f"), ToolArguments(0, '{"x"')]
    assert parser.push(": [1") == [ToolArguments(0, ": [1")]
    assert parser.push("]}") == [ToolArguments(0, "]}")]
    assert parser.push("}</tool_call>") == []
    assert parser.flush() == []


def test_a_call_that_breaks_off_keeps_what_was_told_and_the_rest_is_content():
    broken = parse(tool_parser("hermes", TOOLS), ['<tool_call>{"name": "f", "arguments": {"x": oops}}</tool_call>'])
    assert broken == [ToolStart(0, "f"), ToolArguments(0, '{"x": '), Content("oops}}</tool_call>")]


def test_the_json_automaton_takes_json_and_nothing_else():
    good = ["{}", "[]", '{"a": [1, -0.5e+3, true, null, "\\u00e9\\n"]}', '"x"', "[[[]]]", '{"a":{}}', "[0]", "[1.0]"]
    bad = ["{,}", "[1,]", '{"a" 1}', "{1:2}", "[01]", "[+1]", '["\\x"]', "[tru]", "[1.]", '{"a":1,}', '["\n"]', "]"]
    for text in good:
        automaton = JsonAutomaton()
        assert all(automaton.feed(char) for char in text), text
        assert automaton.complete
        json.loads(text)
    for text in bad:
        automaton = JsonAutomaton()
        assert not (all(automaton.feed(char) for char in text) and automaton.complete), text


def test_deep_nesting_is_content_and_not_a_crash():
    text = '<tool_call>{"name": "f", "arguments": {"x": ' + "[" * 5000
    pieces = parse(tool_parser("hermes", TOOLS), [text])
    assert isinstance(pieces[-1], Content)


THOUGHTS = [
    ("", "<think>\nhm\n</think>\n\nParis.", [Reasoning("hm"), Content("Paris.")]),
    ("…<think>\n", "hm\n</think>\n\nParis.", [Reasoning("hm"), Content("Paris.")]),
    ("…<think>\n", "<think>hm</think>Paris.", [Reasoning("hm"), Content("Paris.")]),
    ("<think>\n\n</think>\n\n", "Paris.", [Content("Paris.")]),
    ("", "Paris. <think>no</think>", [Content("Paris. <think>no</think>")]),
    ("", "<think>never ends", [Reasoning("never ends")]),
    ("", "<think></think>Yes", [Content("Yes")]),
    ("", "<thin", [Content("<thin")]),
]


@pytest.mark.parametrize(("tail", "text", "pieces"), THOUGHTS)
def test_thoughts(tail, text, pieces):
    assert parse(reasoning_parser("think", tail), [text]) == pieces


def test_channels_of_gpt_oss():
    text = (
        "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"x": 1}<|call|><|start|>assistant<|channel|>final<|message|>It rains.'
    )
    assert parse(reasoning_parser("gpt_oss", ""), [text]) == [
        Reasoning("Need the weather."), ToolStart(0, "f"), ToolArguments(0, '{"x": 1}'), Content("It rains."),
    ]  # fmt: skip


def test_reasoning_comes_before_calls():
    both = Pipeline(reasoning_parser("think", ""), tool_parser("hermes", TOOLS))
    text = f"<think>call <tool_call> it</think>Now.\n<tool_call>{CALL}</tool_call>"
    assert parse(both, [text]) == [Reasoning("call <tool_call> it"), Content("Now."), *W0]


def test_a_named_call_is_all_arguments():
    assert parse(NamedCall("f"), ['{"x"', ": 1}"]) == [ToolStart(0, "f"), ToolArguments(0, '{"x": 1}')]
    assert parse(NamedCall("f"), []) == []


TEMPLATES = {
    "hermes": "{%- if tools %}<tool_call>\n{…}\n</tool_call>{% endif %}",
    "mistral": "{% if tools is not none %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]",
    "llama3": '{% if tools %}Environment: ipython\n{% endif %}{"name": …, "parameters": …}',
    "json": "{% for message in messages %}<tool_call>{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_auto_looks_at_the_template(name):
    assert choose_tool_parser("auto", TEMPLATES[name]) == name
    assert knows_tools(TEMPLATES[name]) == (name != "json")


def test_wishes_and_what_does_not_exist():
    assert choose_tool_parser("mistral", None) == "mistral"
    assert choose_tool_parser("auto", None) == "json"
    assert choose_reasoning_parser("auto", "{{ '<think>' }}") == "think"
    assert choose_reasoning_parser("auto", "plain") is None
    assert choose_reasoning_parser("none", "<think>") is None
    with pytest.raises(
        ConfigError, match="unknown tool call parser 'qwen'; accepted: auto, hermes, json, llama3, mistral"
    ):
        choose_tool_parser("qwen", None)
    with pytest.raises(ConfigError, match="accepted: auto, gpt_oss, none, think"):
        choose_reasoning_parser("deepseek", None)
