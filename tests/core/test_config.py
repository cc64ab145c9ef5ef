from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pagoda.core.config import Section, convert, read_dataclass
from pagoda.core.errors import ConfigError
from pagoda.core.types import Granularity


@dataclass(frozen=True)
class Rope:
    theta: float = 10000.0


@dataclass(frozen=True)
class Options:
    layers: int
    kind: Literal["mha", "gqa"] = "gqa"
    scale: float = 1.0
    window: int | None = None
    tied: bool = False
    names: tuple[str, ...] = ()
    box: tuple[int, int] = (0, 0)
    granularity: Granularity = Granularity.SEQUENCE
    rope: Rope = field(default_factory=Rope)
    table: dict[str, int] = field(default_factory=dict)
    anything: Any = None
    halved: int = field(init=False, default=0)


def test_a_dataclass_is_read_with_its_defaults_and_lossless_conversions() -> None:
    data = {
        "layers": 4,
        "kind": "mha",
        "scale": 2,
        "window": None,
        "names": ["a", "b"],
        "box": [1, 2],
        "granularity": "head",
        "rope": {"theta": 5e5},
        "table": {"a": 1},
        "anything": object,
    }
    options = read_dataclass(Options, data, "options")
    assert options.scale == 2.0
    assert isinstance(options.scale, float)
    assert options.names == ("a", "b")
    assert options.box == (1, 2)
    assert options.granularity is Granularity.HEAD
    assert options.rope == Rope(5e5)
    assert options.table == {"a": 1}
    assert options.kind == "mha"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "options: 'layers' is missing; expected int"),
        ({"layers": "4"}, "options: layers is '4'; expected int"),
        ({"layers": True}, "options: layers is True; expected int"),
        ({"layers": 4, "layrs": 5}, "options: unknown key 'layrs'; accepted: anything, box, granularity"),
        ({"layers": 4, "kind": "mqa"}, "unknown options: kind 'mqa'; accepted: 'gqa', 'mha'"),
        ({"layers": 4, "window": "8"}, "options: window is '8'; expected int or null"),
        ({"layers": 4, "tied": 1}, "options: tied is 1; expected bool"),
        ({"layers": 4, "scale": False}, "options: scale is False; expected float"),
        ({"layers": 4, "names": "ab"}, "options: names is 'ab'; expected tuple"),
        ({"layers": 4, "names": ["a", 1]}, r"options: names\[1\] is 1; expected str"),
        ({"layers": 4, "box": [1]}, r"options: box is \[1\]; expected 2 items"),
        ({"layers": 4, "granularity": "page"}, "granularity 'page'; accepted: head, layer, sequence"),
        ({"layers": 4, "rope": {"thta": 1.0}}, "options: rope: unknown key 'thta'; accepted: theta"),
        ({"layers": 4, "rope": 3}, "options: rope is 3; expected Rope"),
        ({"layers": 4, "table": {"a": "1"}}, r"options: table\['a'\] is '1'; expected int"),
        ({"layers": 4, "table": []}, r"options: table is \[\]; expected dict"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_dataclass(Options, data, "options")


def test_a_section_reads_keys_one_by_one() -> None:
    section = Section({"a": 1, "none": None, "inner": {"b": 2.5}, "extra": 0}, "config.json")
    assert section.read("a", int) == 1
    assert section.read("absent", int, 7) == 7
    assert section.read_optional("a", int) == 1
    assert section.read_optional("none", int) is None
    assert section.read_optional("absent", int) is None
    assert section.section("inner").read("b", float) == 2.5
    assert section.section("none").read("b", float, 1.0) == 1.0
    with pytest.raises(ConfigError, match="config.json: inner: 'c' is missing"):
        section.section("inner").read("c", int)
    with pytest.raises(ConfigError, match="config.json: unknown key 'extra'"):
        section.refuse_unknown()
    section.read("extra", int)
    section.refuse_unknown()


def test_a_section_is_made_of_a_dictionary_only() -> None:
    with pytest.raises(ConfigError, match="config.json must be a dictionary, got list"):
        Section([], "config.json")  # type: ignore[arg-type]


def test_null_is_a_kind_of_its_own() -> None:
    assert convert(None, None, "x") is None
    with pytest.raises(ConfigError, match="expected null"):
        convert(0, None, "x")
