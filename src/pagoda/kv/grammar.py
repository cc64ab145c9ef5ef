"""The text behind ``kv=``: names with parameters, joined by ``+``, as in ``recent(budget=0.25)``.

The same grammar serves Python, the command line and single requests. What is unknown is an error that lists what
exists.
"""

from __future__ import annotations

import ast
import dataclasses
from functools import lru_cache

from ..core.errors import ConfigError
from .policies import POLICIES
from .policies.base import KVPolicy


@lru_cache(maxsize=256)
def parse_policy(text: str) -> KVPolicy:
    """The policy that ``text`` names. Raises ConfigError that names the part which is wrong."""
    calls = [_parse_call(node, text) for node in _terms(_expression(text))]
    policies = [_build(name, arguments) for name, arguments in calls]
    lossy = [(call[0], policy) for call, policy in zip(calls, policies, strict=True) if not policy.exact]
    if len(lossy) > 1:
        names = "+".join(name for name, _ in lossy)
        raise ConfigError(f"kv={text!r}: {names} would both evict tokens; name one of them")
    return lossy[0][1] if lossy else policies[0]


def _expression(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"kv={text!r} does not read as name(key=value)+name; example: recent(budget=0.25)") from error


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _terms(node.left) + _terms(node.right)
    return [node]


def _parse_call(node: ast.expr, text: str) -> tuple[str, dict[str, object]]:
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args):
        raise ConfigError(f"kv={text!r} does not read as name(key=value)+name; example: recent(budget=0.25)")
    arguments: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigError(f"kv={text!r}: parameters are written key=value")
        arguments[keyword.arg] = _literal(keyword.value, keyword.arg, text)
    return node.func.id, arguments


def _literal(node: ast.expr, key: str, text: str) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ConfigError(
            f"kv={text!r}: the value of {key} is not a number, a word in quotes, True or False"
        ) from error


def _build(name: str, arguments: dict[str, object]) -> KVPolicy:
    policy_class = POLICIES.get(name)
    assert isinstance(policy_class, type), f"{name}: POLICY is not a class"
    assert issubclass(policy_class, KVPolicy), f"{name}: POLICY is not a KVPolicy"
    assert dataclasses.is_dataclass(policy_class), f"{name}: a policy is a frozen dataclass"
    accepted = {f.name: f for f in dataclasses.fields(policy_class)}
    for key, value in arguments.items():
        if key not in accepted:
            names = ", ".join(accepted) or "no parameters"
            raise ConfigError(f"{name} has no parameter {key!r}; accepted: {names}")
        kinds = [kind.strip() for kind in str(accepted[key].type).split("|")]
        if type(value).__name__ not in kinds:
            raise ConfigError(f"{name}({key}={value!r}): expected {' or '.join(kinds)}")
    return policy_class(**arguments)
