"""The official JSON-Schema cases: what can be enforced gives instances that validate, the rest is refused by name."""

from __future__ import annotations

import collections
import gzip
import json
import re

import pytest

from pagoda import LLM, RequestError, SamplingParams, Structured

from ..models.tokenizer_samples import data

jsonschema = pytest.importorskip("jsonschema")

REASONS = (
    "Unimplemented keys",
    "oneOf constraints",
    "Unsatisfiable schema",
    "Unknown format",
    "Expected positive integer",
    "are not disjoint",
    "Resource",
    "too many digits",
    "nothing satisfies it",
)


@pytest.fixture(scope="module")
def llm():
    with LLM("lantern", memory="3GiB", num_threads=1, max_num_seqs=128) as made:
        yield made


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    with gzip.open(data("structured/json_schema_suite_2020_12.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def enforceable(llm: LLM, cases: list[dict]) -> tuple[list[dict], list[str]]:
    """The cases that the engine takes, and what it says about the others."""
    taken, refusals = [], []
    for case in cases:
        try:
            llm.generate("a", SamplingParams(max_tokens=1, structured=Structured(json_schema=case["schema"])))
            taken.append(case)
        except RequestError as error:
            refusals.append(str(error))
    return taken, refusals


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_instances_validate(llm: LLM, cases: list[dict], temperature: float, capsys) -> None:
    taken, refusals = enforceable(llm, cases)
    # Only so that a small model closes its strings before the tokens run out.
    bias = {llm.tokenizer.encode(text)[-1]: 4.0 for text in '"}]'}
    params = [
        SamplingParams(
            max_tokens=48,
            temperature=temperature,
            seed=i,
            logit_bias=bias,
            structured=Structured(json_schema=case["schema"], compact=i % 2 == 0),
        )
        for i, case in enumerate(taken)
    ]
    outputs = llm.generate([f"Case {i}:" for i in range(len(taken))], params)
    finished = 0
    for case, output in zip(taken, outputs, strict=True):
        assert output.error is None
        if output.finish_reason == "stop":
            finished += 1
            check(case, output.text)
    kinds = collections.Counter(next((r for r in REASONS if r in said), said) for said in refusals)
    with capsys.disabled():
        print(f"\n{len(taken)} schemas enforced ({finished} answers complete), {len(refusals)} refused: {dict(kinds)}")
    assert set(kinds) <= set(REASONS)
    assert len(taken) >= 165
    assert finished >= 0.75 * len(taken)


def check(case: dict, text: str) -> None:
    instance = json.loads(text)
    try:
        jsonschema.Draft202012Validator(case["schema"]).validate(instance)
    except re.error:  # \p{…}, which Python's own regex does not know
        assert "\\p{" in json.dumps(case["schema"])
