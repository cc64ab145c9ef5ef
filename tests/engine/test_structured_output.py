"""Structured output through the engine: in batches, with several answers, streams, stops, preemption, beams."""

from __future__ import annotations

import json
import re

import pytest

from pagoda import LLM, RequestError, SamplingParams, Structured

from ..models.tokenizer_samples import data
from .tiny import prompt

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMS = [
    Structured(json_schema=SCHEMA, compact=True),
    Structured(regex="[a-f]{2,8}(-[0-9]{1,3})?"),
    Structured(choice=["yes", "no", "perhaps"]),
    Structured(grammar='start: "<" /[a-z]{1,4}/ ("," /[0-9]/)~0..2 ">"'),
    None,
]


def params(form: Structured | None, seed: int, **changes) -> SamplingParams:
    fields = {"max_tokens": 80, "temperature": 1.0, "seed": seed, "structured": form, "ignore_eos": form is None}
    return SamplingParams(**fields | changes)


def is_answer(form: Structured | None, text: str) -> bool:
    if form is None:
        return True
    if form.json_schema is not None:
        jsonschema = pytest.importorskip("jsonschema")
        return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))
    if form.choice is not None:
        return text in form.choice
    if form.regex is not None:
        return re.fullmatch(form.regex, text) is not None
    return re.fullmatch("<[a-z]{1,4}(,[0-9]){0,2}>", text) is not None


def work(num: int, **changes):
    return [prompt(i, 9) for i in range(num)], [params(FORMS[i % len(FORMS)], i, **changes) for i in range(num)]


def ids_of(outputs) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def test_a_mixed_batch_says_what_each_says_alone(make_llm):
    llm = make_llm(kv_memory="4MiB")
    prompts, listed = work(15)
    together = llm.generate(prompts, listed)
    alone = [llm.generate([p], one)[0] for p, one in zip(prompts, listed, strict=True)]
    assert ids_of(together) == ids_of(alone)
    for output, one in zip(together, listed, strict=True):
        assert output.error is None
        assert output.finish_reason == ("length" if one.structured is None else "stop")
        assert is_answer(one.structured, output.text), output.text


def test_greedy_answers_are_in_the_language(make_llm):
    prompts, listed = work(5, temperature=0.0)
    for output, one in zip(make_llm().generate(prompts, listed), listed, strict=True):
        assert output.finish_reason == "length" or is_answer(one.structured, output.text), output.text


def test_preemption_changes_no_token(make_llm):
    prompts, listed = work(12)
    roomy, tight = make_llm(kv_memory="8MiB"), make_llm(kv_memory=12 * 2 * 2 * 16 * 4 * 16, max_model_len=100)
    expected, got = roomy.generate(prompts, listed), tight.generate(prompts, listed)
    assert sum(output.num_preemptions for output in got) > 0
    assert ids_of(got) == ids_of(expected)


def test_several_answers_fork_the_grammar(make_llm):
    llm = make_llm()
    output = llm.generate([prompt(1, 20)], params(FORMS[1], 7, n=6))[0]
    assert len({answer.text for answer in output.outputs}) > 1
    assert all(is_answer(FORMS[1], answer.text) for answer in output.outputs)
    best = llm.generate([prompt(1, 20)], params(FORMS[1], 7, n=2, best_of=5))[0]
    assert all(is_answer(FORMS[1], answer.text) for answer in best.outputs)


def test_a_stream_adds_up_to_the_answer(make_llm):
    llm = make_llm()
    one = params(FORMS[0], 3)
    text = llm.generate([prompt(2, 10)], one)[0].text
    assert "".join(output.delta for output in llm.stream(prompt(2, 10), one)) == text


def test_max_tokens_cuts_and_says_so(make_llm):
    llm = make_llm()
    whole = llm.generate([prompt(2, 10)], params(FORMS[0], 3))[0]
    assert whole.finish_reason == "stop"
    cut = llm.generate([prompt(2, 10)], params(FORMS[0], 3, max_tokens=5))[0]
    assert cut.finish_reason == "length"
    assert cut.token_ids == whole.token_ids[:5]
    exact = llm.generate([prompt(2, 10)], params(FORMS[0], 3, max_tokens=len(whole.token_ids)))[0]
    assert exact.finish_reason == "stop"


def test_a_stop_string_ends_a_structure_early(make_llm):
    output = make_llm().generate([prompt(2, 10)], params(FORMS[0], 3, stop='"age"'))[0]
    assert output.outputs[0].stop_reason == '"age"'
    assert output.text.endswith(",")


def test_min_tokens_goes_on_while_the_grammar_can(make_llm):
    llm = make_llm()
    form = Structured(regex="a{1,30}")
    for seed in range(4):
        output = llm.generate([prompt(seed, 6)], params(form, seed, min_tokens=12))[0]
        assert 12 <= len(output.text) <= 30
    short = llm.generate([prompt(1, 6)], params(Structured(choice=["yes"]), 1, min_tokens=40))[0]
    assert (short.text, short.finish_reason) == ("yes", "stop")


def test_bias_acts_inside_the_grammar_and_a_contradiction_is_an_error(make_llm):
    llm = make_llm()
    a, b = (llm.tokenizer.encode(text)[0] for text in "ab")
    form = Structured(regex="[ab]{5}")
    output = llm.generate([prompt(1, 6)], params(form, 1, logit_bias={b: 100.0}))[0]
    assert output.text == "bbbbb"
    refused, fine = llm.generate(
        [prompt(1, 6)] * 2, [params(form, 1, logit_bias={a: float("-inf"), b: float("-inf")}), params(form, 1)]
    )
    assert "no token is possible" in refused.error
    assert fine.finish_reason == "stop"


def test_beams_stay_in_the_language(make_llm):
    output = make_llm().generate(
        [prompt(4, 8)], SamplingParams(beam_width=4, n=4, max_tokens=40, structured=Structured(regex="[ab]{3}(c|dd)"))
    )[0]
    assert len({answer.text for answer in output.outputs}) == 4
    assert all(re.fullmatch("[ab]{3}(c|dd)", answer.text) for answer in output.outputs), output.outputs


def test_what_cannot_be_enforced_is_refused_before_anything_runs(make_llm):
    llm = make_llm()
    with pytest.raises(RequestError, match="structured.regex cannot be enforced"):
        llm.generate([prompt(1, 5)], SamplingParams(structured=Structured(regex="a(b")))
    assert llm.generate([prompt(1, 5)], params(FORMS[2], 1))[0].text in FORMS[2].choice


@pytest.mark.host
def test_it_can_be_switched_off_and_then_takes_no_bytes(make_llm):
    llm = make_llm(structured_output=False)
    assert "grammars" not in llm.stats()["memory"]["accounts"]
    with pytest.raises(RequestError, match="structured output is switched off"):
        llm.generate([prompt(1, 5)], params(FORMS[2], 1))
    account = make_llm().stats()["memory"]["accounts"]["grammars"]
    assert account["leased_bytes"] == (8 << 20) + 400 * 288


def test_a_sentencepiece_model_keeps_its_first_space():
    folder = data("models/stories260K")
    with LLM(str(folder), memory="3GiB", num_threads=1, audit=True) as llm:
        forms = [Structured(regex=" [a-z]{2,9} [a-z]{2,9}"), Structured(json_schema=SCHEMA, compact=True)]
        outputs = llm.generate(
            ["Once upon a time"] * 8, [params(forms[i % 2], i, temperature=float(i % 3)) for i in range(8)]
        )
        for i, output in enumerate(outputs):
            assert output.finish_reason == "stop"
            assert is_answer(forms[i % 2], output.text), output.text
