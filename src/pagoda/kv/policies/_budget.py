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


def at_least(name: str, value: int, least: int) -> None:
    """Raises ConfigError for a whole number that is too small."""
    if value < least:
        raise ConfigError(f"{name}={value!r}; give a whole number from {least}")


def share(name: str, value: float) -> None:
    """Raises ConfigError for what is not a share."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value!r}; give a share from 0.0 to 1.0")


def odd(name: str, value: int) -> None:
    """Raises ConfigError for a width that has no middle."""
    if value < 1 or value % 2 == 0:
        raise ConfigError(f"{name}={value!r}; give an odd number from 1")
