"""Every registered policy and codec as a text for ``kv=``; allocators over an eviction that they fit."""

from __future__ import annotations

import dataclasses

from pagoda.kv.codecs import CODECS
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import Stage

SMALL = {"window": 8, "top": 2, "span": 4, "keep_recent": 2, "sinks": 2}
"""Parameters that suit the tiny budgets of these tests."""


def spelled(name: str, budget: int | float) -> str:
    """The policy with this budget, its windows made small; an allocator wraps snapkv."""
    policy = POLICIES.get(name)
    assert isinstance(policy, type)
    if policy.stage is Stage.ALLOCATOR:  # type: ignore[attr-defined]
        return f"{spelled('snapkv', budget)}+{name}"
    fields = {field.name for field in dataclasses.fields(policy)}
    chosen = {"budget": budget} if "budget" in fields else {"local": budget if isinstance(budget, int) else 10}
    chosen |= {key: value for key, value in SMALL.items() if key in fields}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in chosen.items())})"


def tight(name: str) -> str:
    """The policy or codec so that it loses something of the short texts of these tests, whatever its stage."""
    if name in CODECS.names():
        return name
    stage = POLICIES.get(name).stage  # type: ignore[attr-defined]
    if stage is Stage.SELECTION:
        return f"{name}(pages=3)"
    return f"{name}(window=8, every=8)" if stage is Stage.CODEC else spelled(name, 12)


def of_stage(*stages: Stage) -> list[str]:
    """Registered names."""
    return [name for name, policy in POLICIES.items() if policy.stage in stages]  # type: ignore[attr-defined]


LOSSY = of_stage(Stage.EVICTION, Stage.ALLOCATOR)
EVERY = [*LOSSY, *of_stage(Stage.SELECTION), *of_stage(Stage.CODEC), *CODECS.names()]
