"""`Structured`: the form that an answer must have, as plain data. What enforces it is `grammar`. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.core.errors import ConfigError

from .checks import check_bool, refuse

MAX_TEXT_CHARS = 256 * 1024
MAX_CHOICES = 10_000
KINDS = ("json_schema", "json_object", "regex", "grammar", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structured:
    """Exactly one of five forms; checked at construction (ConfigError), compiled when the request comes in.

    json_schema: a JSON Schema (dict, bool, JSON text, or a class with ``model_json_schema``, as pydantic's models);
        stored as JSON text. Keywords that cannot be enforced are refused, never ignored.
    json_object: any JSON object.
    regex: the whole answer matches it (syntax of Rust's regex crate, without look-around and back references).
    grammar: a context-free grammar in Lark's notation; its rule ``start`` is the answer.
    choice: the answer is one of these texts.
    compact: JSON without whitespace between its parts. Otherwise one space, or a line break with up to 32 columns of
        indentation: a small model that may write any whitespace sometimes never stops.
    """

    json_schema: Any = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        check_bool("structured.json_object", self.json_object)
        check_bool("structured.compact", self.compact)
        given = [kind for kind in KINDS if getattr(self, kind) not in (None, False) or self._is_false_schema(kind)]
        if len(given) != 1:
            raise ConfigError(
                f"structured names {' and '.join(given) or 'nothing'}: accepted is exactly one of {', '.join(KINDS)}"
            )
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for name in ("regex", "grammar"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if self.compact and not self.is_json:
            raise ConfigError("structured.compact acts on JSON only; leave it out, or give json_schema or json_object")

    @property
    def kind(self) -> str:
        """Which of the five forms it is."""
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, False))

    @property
    def is_json(self) -> bool:
        return self.json_object or self.json_schema is not None

    def _is_false_schema(self, kind: str) -> bool:
        """``json_schema=False`` is a schema too (nothing satisfies it; the compiler says so)."""
        return kind == "json_schema" and self.json_schema is False


def _schema_text(value: Any) -> str:
    if isinstance(value, str):
        _check_text("json_schema", value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"structured.json_schema is not JSON: {_line(error)}") from error
    elif hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if not isinstance(value, bool | Mapping):
        raise refuse("structured.json_schema", value, "a JSON Schema: an object, True or False")
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"structured.json_schema cannot be written as JSON: {_line(error)}") from error
    _check_text("json_schema", text)
    return text


def _choices(value: object) -> tuple[str, ...]:
    accepted = f"a list of 1 to {MAX_CHOICES} non-empty texts"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not 0 < len(value) <= MAX_CHOICES:
        raise refuse("structured.choice", value, accepted)
    for each in value:
        if not isinstance(each, str) or not each:
            raise refuse("structured.choice[…]", each, accepted)
    _check_text("choice", "".join(value))
    return tuple(dict.fromkeys(value))


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise refuse(f"structured.{name}", text, "a non-empty text")
    if len(text) > MAX_TEXT_CHARS:
        raise ConfigError(f"structured.{name} has {len(text)} characters: accepted are at most {MAX_TEXT_CHARS}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"structured.{name} is not valid Unicode: lone surrogate at {error.start}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
