"""The text behind ``kv=``: names with parameters, joined by ``+``, as in ``recent(budget=0.25)``.

The same grammar serves Python, the command line and single requests. What is unknown is an error that lists what
exists.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from ..core.calls import Call, build_call, parse_calls
from ..core.errors import ConfigError
from .policies import POLICIES
from .policies.base import KVPolicy


@lru_cache(maxsize=256)
def parse_policy(text: str) -> KVPolicy:
    """The policy that ``text`` names. Raises ConfigError that names the part which is wrong."""
    calls = parse_calls(text, option="kv", example="recent(budget=0.25)")
    policies = [_build(call) for call in calls]
    lossy = [(call.name, policy) for call, policy in zip(calls, policies, strict=True) if not policy.exact]
    if len(lossy) > 1:
        names = "+".join(name for name, _ in lossy)
        raise ConfigError(f"kv={text!r}: {names} would both evict tokens; name one of them")
    return lossy[0][1] if lossy else policies[0]


def _build(call: Call) -> KVPolicy:
    policy_class = POLICIES.get(call.name)
    assert isinstance(policy_class, type), f"{call.name}: POLICY is not a class"
    assert issubclass(policy_class, KVPolicy), f"{call.name}: POLICY is not a KVPolicy"
    assert dataclasses.is_dataclass(policy_class), f"{call.name}: a policy is a frozen dataclass"
    return build_call(policy_class, call)
