"""Strict reading of dictionaries: type, key, default or required; every error says where and what is accepted.

Two doors: ``Section`` for files whose keys are read one by one (a model's ``config.json``), ``read_dataclass`` for our
own options, whose fields are the whole truth.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from .errors import ConfigError, choices

T = TypeVar("T")


class _Required(enum.Enum):
    REQUIRED = "required"


REQUIRED = _Required.REQUIRED


class Section:
    """One dictionary being read. ``where`` names it in errors (``config.json``, ``config.json: rope_scaling``)."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} must be a dictionary, got {_name(type(data))}")
        self._data, self._where = data, where
        self._seen: set[str] = set()

    def read(self, key: str, kind: type[T], default: T | _Required = REQUIRED) -> T:
        """The value of ``key`` as ``kind``. Absent: ``default``, or ConfigError where there is none."""
        value = self._take(key)
        if value is REQUIRED:
            if default is REQUIRED:
                raise ConfigError(f"{self._where}: {key!r} is missing; expected {_name(kind)}")
            return typing.cast(T, default)
        return typing.cast(T, convert(value, kind, f"{self._where}: {key}"))

    def read_optional(self, key: str, kind: type[T]) -> T | None:
        """The value of ``key`` as ``kind``; None where it is absent or null."""
        value = self._take(key)
        return None if value is REQUIRED or value is None else convert(value, kind, f"{self._where}: {key}")

    def section(self, key: str) -> Section:
        """The dictionary under ``key``; empty where it is absent or null."""
        value = self._take(key)
        return Section({} if value is REQUIRED or value is None else value, f"{self._where}: {key}")

    def refuse_unknown(self) -> None:
        """Raises ConfigError for keys that nobody read, listing those that were."""
        for key in self._data:
            if key not in self._seen:
                raise ConfigError(f"{self._where}: {choices('key', key, self._seen)}")

    def _take(self, key: str) -> Any:
        self._seen.add(key)
        return self._data.get(key, REQUIRED)


def read_dataclass(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A dataclass from a dictionary: fields without a default are required, keys that are no field are refused.

    Raises ConfigError naming the key, the value and what is accepted.
    """
    section, hints = Section(data, where), typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if not field.init:
            continue
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name in section._data or not optional:
            values[field.name] = section.read(field.name, hints[field.name])
        section._seen.add(field.name)
    section.refuse_unknown()
    return cls(**values)


def convert(value: Any, kind: Any, where: str) -> Any:
    """``value`` checked against a type hint: never guessed, so ``"3"`` is no int and ``1`` is no bool.

    Conversions that lose nothing are made: int to float, list to tuple, text to a member of a StrEnum, dict to a
    dataclass. Raises ConfigError otherwise.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, where)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise ConfigError(choices(where, value, (repr(a) for a in args)))
    if origin in (list, tuple):
        return _convert_sequence(value, origin, args, where)
    if origin is dict:
        _check(isinstance(value, Mapping), value, kind, where)
        return {convert(k, args[0], where): convert(v, args[1], f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _convert_enum(value, kind, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return read_dataclass(kind, value, where)
    return _convert_plain(value, kind, where)


def _convert_plain(value: Any, kind: Any, where: str) -> Any:
    if kind is None:
        kind = type(None)
    is_bool = isinstance(value, bool)
    if kind is float and isinstance(value, int) and not is_bool:
        return float(value)
    _check(isinstance(value, kind) and (kind is bool or kind is object or not is_bool), value, kind, where)
    return value


def _convert_enum(value: Any, kind: type[enum.Enum], where: str) -> enum.Enum:
    for member in kind:
        if value is member or value == member.value:
            return member
    raise ConfigError(choices(where, value, [str(member.value) for member in kind]))


def _convert_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    for kind in kinds:
        try:
            return convert(value, kind, where)
        except ConfigError:
            continue  # the next member of the union may take it; the error below speaks for all
    raise ConfigError(f"{where} is {value!r}; expected {' or '.join(_name(k) for k in kinds)}")


def _convert_sequence(value: Any, origin: Any, args: tuple[Any, ...], where: str) -> Any:
    _check(isinstance(value, (list, tuple)), value, origin, where)
    fixed = origin is tuple and not (len(args) == 2 and args[1] is Ellipsis)
    if fixed and len(value) != len(args):
        raise ConfigError(f"{where} is {value!r}; expected {len(args)} items")
    kinds = args if fixed else (args[0],) * len(value)
    return origin(convert(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))


def _check(good: bool, value: Any, kind: Any, where: str) -> None:
    if not good:
        raise ConfigError(f"{where} is {value!r}; expected {_name(kind)}")


def _name(kind: Any) -> str:
    return "null" if kind is type(None) or kind is None else getattr(kind, "__name__", str(kind))
