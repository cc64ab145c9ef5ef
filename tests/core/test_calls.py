from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Literal, Optional

import pytest

from pagoda.core.calls import Call, build_call, format_call, parse_calls
from pagoda.core.errors import ConfigError


@dataclass(frozen=True)
class Option:
    size: int = 4
    share: float | int = 0.5
    name: str = "a"


def parse(text: str) -> list[Call]:
    return parse_calls(text, option="opt", example="name(size=1)")


def test_terms_and_parameters() -> None:
    assert parse(" one + two(size=3, name='b')+three() ") == [
        Call("one", {}),
        Call("two", {"size": 3, "name": "b"}),
        Call("three", {}),
    ]


@pytest.mark.parametrize("text", ["", "1", "a(", "a(1)", "a-b", "a.b", "a(**x)", "a(size=b)", "a\0"])
def test_unreadable_texts_are_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="opt="):
        parse(text)


def test_a_parameter_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"opt='b\+a\(size=1, size=2\)': a has size twice; give it once"):
        parse("b+a(size=1, size=2)")
    assert len(parse("a(size=1)+a(size=2)")) == 2


def test_kinds_may_be_classes_as_in_files_without_annotations_from_the_future() -> None:
    made = make_dataclass("Plain", [("size", int, 4), ("share", float, 0.5), ("either", int | float, 1)])
    assert build_call(made, Call("o", {"size": 3, "share": 1, "either": 0.5})) == made(3, 1.0, 0.5)
    with pytest.raises(ConfigError, match=r"o\(size='x'\): expected int$"):
        build_call(made, Call("o", {"size": "x"}))


def test_kinds_may_be_optional_or_one_of_some_words() -> None:
    fields = [("size", Optional[int], 4), ("share", "float | None", 0.5), ("rule", Literal["new", "old"], "new")]  # noqa: UP045
    made = make_dataclass("Plain", fields)
    assert build_call(made, Call("o", {"size": None, "share": 1, "rule": "old"})) == made(None, 1.0, "old")
    assert build_call(made, Call("o", {"size": 3, "share": None})) == made(3, None)
    with pytest.raises(ConfigError, match=r"o\(size=0.5\): expected int or None$"):
        build_call(made, Call("o", {"size": 0.5}))
    with pytest.raises(ConfigError, match=r"o\(rule='mid'\): expected 'new' or 'old'$"):
        build_call(made, Call("o", {"rule": "mid"}))


def test_a_kind_that_the_file_lacks_is_said() -> None:
    made = make_dataclass("Plain", [("size", "Sise", 4)])
    with pytest.raises(ConfigError, match="o: a parameter is annotated with Sise, which its file lacks"):
        build_call(made, Call("o", {"size": 1}))


def test_a_number_of_either_kind_stays_of_its_kind() -> None:
    assert type(build_call(Option, Call("o", {"share": 1})).share) is int
    assert type(build_call(Option, Call("o", {"share": 1.0})).share) is float


def test_build_checks_names_and_kinds() -> None:
    assert build_call(Option, Call("o", {"share": 1})) == Option(share=1)
    with pytest.raises(ConfigError, match=r"o has no parameter 'width'; accepted: size, share, name"):
        build_call(Option, Call("o", {"width": 1}))
    with pytest.raises(ConfigError, match=r"o\(size='x'\): expected int"):
        build_call(Option, Call("o", {"size": "x"}))
    with pytest.raises(ConfigError, match=r"o\(size=True\): expected int"):
        build_call(Option, Call("o", {"size": True}))


@pytest.mark.parametrize("option", [Option(), Option(size=1), Option(name="b c", share=0.25)])
def test_format_is_the_way_back(option: Option) -> None:
    (call,) = parse(format_call("o", option))
    assert build_call(Option, call) == option
    assert format_call("o", Option()) == "o"
