"""Strict tools while the model is free: every format holds its calls to the schemas and leaves other text alone."""

from __future__ import annotations

import json
import random

import pytest

from pagoda.core.errors import RequestError
from pagoda.models.resolve import resolve
from pagoda.models.tokenizer import Tokenizer
from pagoda.sampling.grammar import GrammarCompiler, GrammarState, json_rule
from pagoda.sampling.structured import Structured
from pagoda.server.parsers import TOOL_PARSERS
from pagoda.server.parsers._strict import Held
from pagoda.server.parsers.pieces import ToolArguments, ToolStart, joined
from pagoda.server.parsers.pipeline import tool_parser

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FORMATS = {  # the beginning of a call, the rest of a good one, and of bad ones
    "hermes": ('<tool_call>\n{"name": "f", "arguments": {"a": ', "1}}\n</tool_call>", ["3}}", "1, ", "1}}\nx"]),
    "json": ('{"name": "f", "arguments": {"a": ', "1}}", ["3}}", "1, ", "1}} x"]),
    "llama3": ('{"name": "f", "parameters": {"a": ', "1}}", ["3}}", "1, ", "1}} x"]),
    "mistral": ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": ', "1}}]", ["3}}]", "1, ", "1}} x"]),
    "mistral v11": ('[TOOL_CALLS]f[ARGS]{"a": ', "1}", ["3}", "1, "]),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(resolve("lantern"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(
        lambda: [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)],
        eos_ids=[tokenizer.eos_id or 0], special_ids=tokenizer.special_ids,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )  # fmt: skip


def grammar(name: str, other: str | None = None, several: bool = True) -> Structured:
    kind, _, version = name.partition(" ")
    tools = [("f", json_rule(SCHEMA)), ("get", json_rule({"type": "object"}))]
    held = Held(tools, other, several, lambda mark: None, "[ARGS]" if version else "")
    return Structured(grammar=TOOL_PARSERS.module(kind).strict_rules(held))


def taken(state: GrammarState, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the grammar allows the text, tokenized as in the middle of one."""
    for token in tokenizer.encode("\x02" + text, False)[len(tokenizer.encode("\x02", False)) :]:
        if not state.mask()[token // 8] >> (token % 8) & 1:
            return False
        state.accept(token)
    return True


def test_every_format_is_here() -> None:
    assert {name.partition(" ")[0] for name in FORMATS} == set(TOOL_PARSERS.names())


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_is_held_and_text_is_free(name: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    begin, good, bad = FORMATS[name]
    made = compiler.compile(grammar(name))
    for text in ("", "Hello, {x} [1] <tool", "It is 3 < 4.\n"):
        state = made.start()
        assert taken(state, tokenizer, text), text
        assert state.may_end
    state = made.start()
    assert taken(state, tokenizer, begin + good)
    assert state.may_end
    for rest in bad:
        assert not taken(made.start(), tokenizer, begin + rest), rest
    unknown = begin.replace('"f"', '"nobody"').replace("]f[", "]nobody[")
    assert not taken(made.start(), tokenizer, unknown)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("several", [True, False])
def test_beside_a_form_the_answer_is_a_call_or_in_the_form(
    name: str, several: bool, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    begin, good, _ = FORMATS[name]
    made = compiler.compile(grammar(name, json_rule({"type": "array", "items": {"type": "boolean"}}), several))
    for text in (begin + good, "[true,false]"):
        state = made.start()
        assert taken(state, tokenizer, text), text
        assert state.may_end
    assert not taken(made.start(), tokenizer, "Hello")


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_random_model_writes_is_what_the_parser_reads(
    name: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    begin = FORMATS[name][0]
    for seed in range(5):
        rng, state, text = random.Random(seed), compiler.compile(grammar(name, several=False)).start(), begin
        assert taken(state, tokenizer, begin)
        while not state.may_end:
            allowed = [t for t in range(tokenizer.vocab_size) if state.mask()[t // 8] >> (t % 8) & 1]
            token = rng.choice(allowed)
            state.accept(token)
            text += tokenizer.token_bytes(token).decode()
        parser = tool_parser(name.partition(" ")[0], ["f", "get"])
        pieces = joined([*parser.push(text), *parser.flush()])
        assert [piece.name for piece in pieces if isinstance(piece, ToolStart)] == ["f"], text
        arguments = "".join(piece.text for piece in pieces if isinstance(piece, ToolArguments))
        assert json.loads(arguments)["a"] in (1, 2)


def test_marks_that_are_special_tokens(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    mark = tokenizer.token_id("<|user|>")
    for name in TOOL_PARSERS.names():
        held = Held([("f", json_rule(SCHEMA))], None, True, lambda _: mark, "")
        state = compiler.compile(Structured(grammar=TOOL_PARSERS.module(name).strict_rules(held))).start()
        assert bool(state.mask()[mark // 8] >> (mark % 8) & 1) == (name != "json")


def test_a_keyword_that_cannot_be_enforced_is_refused(compiler: GrammarCompiler) -> None:
    held = Held([("f", json_rule({"not": {"type": "object"}}))], None, True, lambda _: None, "")
    with pytest.raises(RequestError, match="not"):
        compiler.compile(Structured(grammar=TOOL_PARSERS.module("json").strict_rules(held)))
