"""What `pagoda bench kv` prices, by name. No torch: what is not there is refused before any is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.calls import parse_calls
from ..kv.codecs import CODECS
from ..kv.grammar import parse_policy
from ..kv.policies import POLICIES
from ..kv.policies.base import Stage


def spell(policies: Sequence[str], budgets: Sequence[int | float]) -> list[tuple[str, str, int | float | None]]:
    """``(kv, method, budget)`` for every policy at every budget. A policy that states its own budget is taken as it is;
    an allocator alone wraps snapkv. Raises ConfigError as the grammar does.
    """
    found: list[tuple[str, str, int | float | None]] = []
    for text in policies:
        first = parse_calls(text.replace("-", "_"), option="policies", example="snapkv,h2o")[0]
        if first.name in CODECS.names():
            parse_policy(text)
            found.append((text, text, None))
            continue
        policy: Any = POLICIES.get(first.name)
        if policy.stage is Stage.ALLOCATOR:
            text, policy = f"snapkv+{text}", POLICIES.get("snapkv")
        fixed = "budget" in first.arguments or "budget" not in policy.__dataclass_fields__
        for budget in [None] if fixed else budgets:
            kv = text if budget is None else _with_budget(text, budget)
            parse_policy(kv)
            if not parse_policy(kv).exact:
                found.append((kv, text, budget))
    return found


def _with_budget(text: str, budget: int | float) -> str:
    head, plus, tail = text.partition("+")
    name, _, rest = head.partition("(")
    others = rest.rstrip(") ")
    return f"{name}(budget={budget}{', ' if others else ''}{others}){plus}{tail}"
