"""The value object: one form, checked, canonical, hashable; nothing heavy is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pagoda import ConfigError, SamplingParams, Structured
from pagoda.sampling.structured import MAX_TEXT_CHARS

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}, "required": ["é"]}


def test_each_form_says_its_kind():
    forms = {
        "json_schema": SCHEMA,
        "json_object": True,
        "regex": "[0-9]+",
        "grammar": 'start: "a"',
        "choice": ["yes", "no"],
    }
    assert {Structured(**{kind: value}).kind for kind, value in forms.items()} == set(forms)
    assert [Structured(**{kind: value}).is_json for kind, value in forms.items()] == [True, True, False, False, False]


def test_equal_forms_are_equal_and_hash_alike():
    text = json.dumps(SCHEMA, indent=3)
    assert Structured(json_schema=SCHEMA) == Structured(json_schema=text)
    assert len({Structured(json_schema=SCHEMA), Structured(json_schema=text), Structured(choice=["a"])}) == 2
    assert Structured(choice=["a", "b", "a"]).choice == ("a", "b")


def test_a_class_with_a_schema_is_a_schema():
    class Model:
        @staticmethod
        def model_json_schema() -> dict:
            return SCHEMA

    assert Structured(json_schema=Model) == Structured(json_schema=SCHEMA)


@pytest.mark.parametrize("schema", [True, False, {}])
def test_boolean_schemas_are_schemas(schema):
    assert json.loads(Structured(json_schema=schema).json_schema) == schema


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "nothing: accepted is exactly one of json_schema, json_object, regex, grammar, choice"),
        ({"regex": "a", "choice": ["a"]}, "structured names regex and choice"),
        ({"json_schema": False, "regex": "a"}, "json_schema and regex"),
        ({"json_schema": "{"}, "structured.json_schema is not JSON"),
        ({"json_schema": "3"}, "structured.json_schema=3: accepted is a JSON Schema"),
        ({"json_schema": {"const": float("nan")}}, "cannot be written as JSON"),
        ({"json_schema": {"const": object()}}, "cannot be written as JSON"),
        ({"json_schema": {"title": "x" * MAX_TEXT_CHARS}}, "accepted are at most"),
        ({"regex": ""}, "structured.regex=''"),
        ({"regex": 3}, "structured.regex=3"),
        ({"regex": "a\ud800"}, "lone surrogate"),
        ({"grammar": ""}, "structured.grammar=''"),
        ({"choice": "yes"}, "structured.choice='yes': accepted is a list"),
        ({"choice": []}, "structured.choice=[]"),
        ({"choice": ["a", ""]}, "structured.choice[…]=''"),
        ({"json_object": 1}, "structured.json_object=1"),
        ({"regex": "a", "compact": True}, "structured.compact acts on JSON only"),
    ],
)
def test_what_is_refused(fields, says):
    with pytest.raises(ConfigError) as error:
        Structured(**fields)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_params_take_the_object_and_nothing_else():
    with pytest.raises(ConfigError, match="structured="):
        SamplingParams(structured={"regex": "a"})
    with pytest.raises(ConfigError, match="ignore_eos cannot be combined with structured"):
        SamplingParams(structured=Structured(regex="a"), ignore_eos=True)


def test_nothing_heavy_is_imported():
    code = "import sys; from pagoda import Structured; Structured(regex='a'); import pagoda.sampling.grammar as g"
    code += "; sys.exit(any(name in sys.modules for name in ('torch', 'llguidance')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
