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


MOST = 1 << 30
"""Of any whole number: sums of several still have 32 bits."""
MOST_QUERIES = 256
"""Of a window whose queries are looked at again: their attention to all slots of all heads is in memory at once."""


def at_least(name: str, value: int, least: int, most: int = MOST) -> None:
    """Raises ConfigError for a whole number that is too small, or too large."""
    if value < least:
        raise ConfigError(f"{name}={value!r}; give a whole number from {least}")
    if value > most:
        raise ConfigError(f"{name}={value!r}; give a whole number from {least} to {most}")


def looks_back(window: int) -> None:
    """Raises ConfigError for a number of newest queries that no act should be shown."""
    at_least("window", window, 1, MOST_QUERIES)


def share(name: str, value: float) -> None:
    """Raises ConfigError for what is not a share."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value!r}; give a share from 0.0 to 1.0")


def odd(name: str, value: int) -> None:
    """Raises ConfigError for a width that has no middle, or is wider than anything that belongs together."""
    if not 1 <= value <= MOST_QUERIES or value % 2 == 0:
        raise ConfigError(f"{name}={value!r}; give an odd number from 1 to {MOST_QUERIES - 1}")
