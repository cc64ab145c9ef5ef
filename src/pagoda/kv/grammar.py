"""The text behind ``kv=``: names with parameters, joined by ``+``, as in ``snapkv(budget=0.25)+pyramid+int8``.

Names are those of policies and codecs, and ``offload``. The same grammar serves Python, the command line and single
requests. What is unknown is an error that lists what exists.
"""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache

from ..core.calls import Call, build_call, parse_calls
from ..core.errors import ConfigError, choices
from .codecs import CODECS
from .policies import POLICIES
from .policies._stack import PolicyStack
from .policies.base import KVPolicy, Offloaded, Stored

OFFLOAD = "offload"
_HYPHEN = re.compile(r"(?<=[a-z0-9])-(?=[a-z])")


@lru_cache(maxsize=256)
def parse_policy(text: str) -> PolicyStack:
    """The policies that ``text`` names, joined. Raises ConfigError that names the part which is wrong.

    Published names may be written with their hyphens: ``streaming-llm`` is ``streaming_llm``.
    """
    calls = parse_calls(_HYPHEN.sub("_", text), option="kv", example="snapkv(budget=0.25)+pyramid")
    return PolicyStack.join([(call.name, _build(call)) for call in calls], "+".join(map(_spelled, calls)))


def _spelled(call: Call) -> str:
    """As a person would write it, whoever wrote it."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(call.arguments.items()))
    return f"{call.name}({arguments})" if arguments else call.name


def _build(call: Call) -> KVPolicy:
    if call.name in (OFFLOAD, *CODECS.names()):
        if call.arguments:
            raise ConfigError(f"{call.name} has no parameter {next(iter(call.arguments))!r}; accepted: no parameters")
        return Offloaded() if call.name == OFFLOAD else Stored(call.name)
    if call.name not in POLICIES.names():
        raise ConfigError(choices("KV policy", call.name, [*POLICIES.names(), *CODECS.names(), OFFLOAD]))
    policy_class = POLICIES.get(call.name)
    assert isinstance(policy_class, type), f"{call.name}: POLICY is not a class"
    assert issubclass(policy_class, KVPolicy), f"{call.name}: POLICY is not a KVPolicy"
    assert dataclasses.is_dataclass(policy_class), f"{call.name}: a policy is a frozen dataclass"
    return build_call(policy_class, call)
