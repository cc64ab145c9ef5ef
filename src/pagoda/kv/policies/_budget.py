"""A budget is tokens per head, or a share of the prompt that becomes a count once."""

from __future__ import annotations

from ...core.errors import ConfigError


def token_budget(budget: int | float, prompt_len: int) -> int:
    """Tokens per head, at least 1. Raises ConfigError for a budget that is neither a count nor a share."""
    if isinstance(budget, int) and budget >= 1:
        return budget
    if isinstance(budget, float) and 0.0 < budget <= 1.0:
        return max(1, round(budget * prompt_len))
    raise ConfigError(
        f"budget={budget!r}; give tokens per head (a whole number from 1) or a share (0.0 < budget <= 1.0)"
    )
