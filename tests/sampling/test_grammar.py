"""Grammars over real and made tokenizers: what may come next, where an answer may end, and what is refused."""

from __future__ import annotations

import gc
import json
import random
import re
import threading
import time
import weakref

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagoda import RequestError, Structured

from ..models.tokenizer_samples import sample
from .grammar_helpers import allowed_ids, compiler, walk

TOKENIZERS = {"byte_level": "<|end|>", "byte_fallback": "</s>", "gpt2": "<|endoftext|>", "stories260K": "</s>"}
_kept = {}


def of(name: str):
    """(compiler, tokenizer, eos id), made once."""
    if name not in _kept:
        tokenizer = sample(name)
        eos_id = tokenizer.token_id(TOKENIZERS[name])
        _kept[name] = (compiler(tokenizer, [eos_id]), tokenizer, eos_id)
    return _kept[name]


def text_of(tokenizer, ids: list[int]) -> str:
    stream = tokenizer.detokenizer(inside=True)
    return "".join(map(stream.push, ids)) + stream.flush()


FORMS = {
    "regex": (Structured(regex=r" ?[a-cé你]{1,4}(-[0-9]{2})?"), re.compile(r" ?[a-cé你]{1,4}(-[0-9]{2})?").fullmatch),
    "choice": (
        Structured(choice=["yes", 'no "é"', "new\nline", "tab\t\\", " 你好 😀"]),
        ["yes", 'no "é"', "new\nline", "tab\t\\", " 你好 😀"].__contains__,
    ),
    "grammar": (
        Structured(grammar='start: "(" inner? ")"\ninner: start | /[a-z]{1,3}/'),
        re.compile(r"\(*[a-z]{0,3}\)*").fullmatch,
    ),
    "schema": (
        Structured(json_schema={"type": "array", "items": {"enum": ["é", 1, None]}, "maxItems": 3}),
        lambda text: all(each in ("é", 1, None) for each in json.loads(text)),
    ),
    "object": (Structured(json_object=True, compact=True), lambda text: isinstance(json.loads(text), dict)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_walk_is_in_the_language(name, form):
    grammars, tokenizer, eos_id = of(name)
    structured, accepts = FORMS[form]
    ended = 0
    for seed in range(12):
        ids, done = walk(grammars.compile(structured).start(), eos_id, random.Random(seed))
        ended += done
        assert not done or accepts(text_of(tokenizer, ids)), text_of(tokenizer, ids)
    assert ended >= (0 if form == "object" else 8)  # strings may go on for ever


@settings(deadline=None, max_examples=60)
@example(["\x7f"])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=6))
def test_any_texts_are_choices(texts):
    grammars, tokenizer, eos_id = of("byte_level")
    ids, done = walk(grammars.compile(Structured(choice=texts)).start(), eos_id, random.Random(0))
    assert done
    assert text_of(tokenizer, ids) in texts


def test_the_end_comes_where_nothing_can_follow():
    grammars, tokenizer, eos_id = of("gpt2")
    state = grammars.compile(Structured(choice=["no", "not"])).start()
    state.accept(tokenizer.encode("no")[0])
    assert state.may_end
    assert not state.is_complete
    assert state.can_go_on([eos_id])
    state.accept(tokenizer.encode("t")[0])
    assert state.is_complete
    assert allowed_ids(state) == [eos_id]
    assert not state.can_go_on([eos_id])


def test_special_tokens_are_no_text():
    grammars, tokenizer, eos_id = of("gpt2")
    ids, done = walk(grammars.compile(Structured(regex=r"<\|endoftext\|>")).start(), eos_id, random.Random(0))
    assert done
    assert text_of(tokenizer, ids) == "<|endoftext|>"


def test_a_fork_goes_its_own_way():
    grammars, tokenizer, _ = of("gpt2")
    state = grammars.compile(Structured(regex="a[bc]")).start()
    state.accept(tokenizer.encode("a")[0])
    twin = state.fork()
    state.accept(tokenizer.encode("b")[0])
    assert state.is_complete
    assert not twin.is_complete
    assert {tokenizer.token(i) for i in allowed_ids(twin)} == {"b", "c"}


def test_a_token_outside_is_an_error_that_stays():
    grammars, tokenizer, _ = of("gpt2")
    state = grammars.compile(Structured(regex="a")).start()
    state.accept(tokenizer.encode("b")[0])
    assert state.error
    assert not state.is_complete


REFUSED = [
    ({"regex": "a(b"}, "structured.regex cannot be enforced: at 1(8): invalid regex"),
    ({"regex": "(?=a)b"}, "structured.regex"),
    ({"grammar": "start: foo"}, 'structured.grammar cannot be enforced: at 1(8): unknown name: "foo"'),
    ({"grammar": 'begin: "a"'}, "structured.grammar"),
    ({"json_schema": {"not": {}}}, 'structured.json_schema cannot be enforced: Unimplemented keys: ["not"]'),
    ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 1}}, "Unsatisfiable schema"),
    ({"json_schema": False}, "nothing satisfies it"),
    ({"json_schema": {"$ref": "http://localhost:1234/integer.json"}}, "structured.json_schema"),
    ({"json_schema": {"$ref": "#"}}, "structured.json_schema"),
    ({"json_schema": {"x-guidance": {"lenient": True}, "not": {}}}, "'x-guidance'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), REFUSED)
def test_what_cannot_be_enforced_is_refused(fields, says):
    with pytest.raises(RequestError) as error:
        of("byte_level")[0].compile(Structured(**fields))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_an_end_cannot_be_held_to_a_form():
    with pytest.raises(RequestError, match="no end-of-sequence"):
        compiler(sample("byte_level"), []).compile(Structured(regex="a"))


def test_grammars_are_compiled_once_and_few_are_kept():
    grammars = compiler(sample("byte_level"), [0])
    first = grammars.compile(Structured(regex="a"))
    assert grammars.compile(Structured(regex="a")) is first
    for length in range(40):
        grammars.compile(Structured(regex=f"b{{{length + 1}}}"))
    assert len(grammars._cache) == 16
    assert grammars.compile(Structured(regex="a")) is not first


def test_compiling_lets_other_threads_run():
    """A schema of thousands of properties takes its time, in a thread; a step loop beside it goes on."""
    grammars = of("byte_level")[0]
    slow = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}
    thread = threading.Thread(target=grammars.compile, args=(Structured(json_schema=slow),))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0)
    assert turns > 10


def test_an_ambiguous_grammar_fails_before_it_is_slow():
    grammars, tokenizer, _ = of("gpt2")
    state = grammars.compile(Structured(grammar='start: a\na: a a | "x" | a a a')).start()
    x = tokenizer.encode("x")[0]
    for _ in range(400):
        if state.error is not None:
            break
        state.mask()
        state.accept(x)
    assert state.error is not None
    assert "items" in state.error


def test_the_vocabulary_goes_with_the_last_state_that_reads_it():
    """The library's object and what it reads from hold each other, unseen by Python's collector."""
    tokenizer = sample("byte_level")
    grammars = compiler(tokenizer, [tokenizer.token_id("<|end|>")])
    state = grammars.compile(Structured(choice=["yes", "no"])).start()
    source = weakref.ref(grammars._trie._source)
    del grammars
    twin = state.fork()
    del state
    gc.collect()
    assert source() is not None
    assert any(allowed_ids(twin))
    del twin
    gc.collect()
    assert source() is None
