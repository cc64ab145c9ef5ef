"""The small grammar of options that name plug-ins with parameters: ``name(key=value)+name``.

The same text serves Python, the command line, config files and single requests: ``recent(budget=0.25)``,
``int4(group=64, symmetric=True)``. What is unknown is an error that lists what exists.
"""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from .config import convert
from .errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One term of the text: a name and its parameters."""

    name: str
    arguments: dict[str, Any]


def parse_calls(text: str, *, option: str, example: str) -> list[Call]:
    """The terms of ``text``, in order. Raises ConfigError that shows how such a text reads."""
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(_unreadable(text, option, example)) from error
    return [_call(node, text, option, example) for node in _terms(expression)]


def build_call(cls: type[T], call: Call) -> T:
    """``cls``, a dataclass, from a call's parameters. Raises ConfigError naming the parameter that is wrong.

    A value is of the annotated kind (``int``, ``float | int``, ``Optional[int]``, ``Literal["a", "b"]``);
    nothing is guessed but that 3 is 3.0 where only a float is accepted.
    """
    accepted = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    try:
        kinds = typing.get_type_hints(cls)
    except NameError as error:  # a plug-in's file that imports a kind for type checkers only
        raise ConfigError(f"{call.name}: a parameter is annotated with {error.name}, which its file lacks") from error
    arguments = {}
    for key, value in call.arguments.items():
        if key not in accepted:
            raise ConfigError(
                f"{call.name} has no parameter {key!r}; accepted: {', '.join(accepted) or 'no parameters'}"
            )
        arguments[key] = _as_stated(value, kinds[key], f"{call.name}({key}={value!r})")
    return cls(**arguments)


def format_call(name: str, instance: Any) -> str:
    """The shortest text that builds ``instance`` again: parameters that have their default are left out."""
    changed = [
        f"{f.name}={getattr(instance, f.name)!r}"
        for f in dataclasses.fields(instance)
        if getattr(instance, f.name) != f.default
    ]
    return f"{name}({', '.join(changed)})" if changed else name


def _as_stated(value: Any, kind: Any, where: str) -> Any:
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if type(value) in members:  # 512 of float | int stays 512: tokens, where 0.5 is a share
        return value
    try:
        return convert(value, kind, where)
    except ConfigError as error:
        raise ConfigError(f"{where}: expected {' or '.join(_name(member) for member in members)}") from error


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(kind))
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _unreadable(text: str, option: str, example: str) -> str:
    return f"{option}={text!r} does not read as name(key=value)+name; example: {example}"


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _terms(node.left) + _terms(node.right)
    return [node]


def _call(node: ast.expr, text: str, option: str, example: str) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id, {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args):
        raise ConfigError(_unreadable(text, option, example))
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigError(f"{option}={text!r}: parameters are written key=value")
        if keyword.arg in arguments:
            raise ConfigError(f"{option}={text!r}: {node.func.id} has {keyword.arg} twice; give it once")
        arguments[keyword.arg] = _literal(keyword.value, keyword.arg, text, option)
    return Call(node.func.id, arguments)


def _literal(node: ast.expr, key: str, text: str, option: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ConfigError(
            f"{option}={text!r}: the value of {key} is not a number, a word in quotes, True or False"
        ) from error
