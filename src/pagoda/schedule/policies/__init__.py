"""One file per scheduling policy; the file name is the name that ``--scheduling`` takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...core.calls import build_call, parse_calls
from ...core.errors import ConfigError, choices
from ...core.registry import Registry

if TYPE_CHECKING:
    from .base import SchedulingPolicy

POLICIES = Registry("pagoda.schedule.policies", "scheduling policy", "POLICY")
_HYPHEN = re.compile(r"(?<=[a-z0-9])-(?=[a-z])")


def parse_scheduling(text: str) -> SchedulingPolicy:
    """A new policy from ``name`` or ``name(key=value)``; ``past-future`` is ``past_future``.

    Raises ConfigError naming the policy, parameter or value that is wrong and what is accepted.
    """
    calls = parse_calls(_HYPHEN.sub("_", text), option="scheduling", example="sarathi_serve(tbt=0.05)")
    if len(calls) != 1:
        raise ConfigError(f"scheduling={text!r} names {len(calls)} policies; give one")
    if calls[0].name not in POLICIES.names():
        raise ConfigError(choices("scheduling policy", calls[0].name, POLICIES.names()))
    policy_class = POLICIES.get(calls[0].name)
    assert isinstance(policy_class, type), f"{calls[0].name}: POLICY is not a class"
    policy: SchedulingPolicy = build_call(policy_class, calls[0])
    return policy
