"""Strict checks, one kind of field each: the canonical value, or a ConfigError that says what is accepted. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pagoda.core.errors import ConfigError

MAX_TOKEN_ID = 2**31 - 1


def refuse(field: str, value: object, accepted: str) -> ConfigError:
    """The house form of a bad field: name, value, what is accepted, on one line."""
    return ConfigError(f"{field}={_short(value)}: accepted is {accepted}")


def check_int(field: str, value: object, low: int, high: int, *, note: str = "") -> int:
    """An int in ``[low, high]``. A bool is not an int, a float is not an int."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refuse(field, value, _int_range(low, high) + note)
    return int(value)


def check_optional_int(field: str, value: object, low: int, high: int, *, none_means: str) -> int | None:
    """None, or an int in ``[low, high]``."""
    return None if value is None else check_int(field, value, low, high, note=f", or None ({none_means})")


def check_float(field: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """A finite number in ``[low, high]`` (``(low, high]`` with ``open_low``); ints are taken as floats."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not _inside(float(value), low, high, open_low):  # type: ignore[arg-type]
        raise refuse(field, value, f"a number in {'(' if open_low else '['}{low:g}, {high:g}]")
    return float(value)  # type: ignore[arg-type]


def check_bool(field: str, value: object) -> bool:
    """True or False, nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise refuse(field, value, "True or False")
    return value


def check_token_ids(field: str, value: object, max_count: int) -> tuple[int, ...]:
    """None (no ids) or a sequence of token ids; repeated ids are dropped."""
    if value is None:
        return ()
    accepted = f"a list of at most {max_count} token ids (ints >= 0)"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | frozenset) or len(value) > max_count:
        raise refuse(field, value, accepted)
    ids: Iterable[object] = value
    return tuple(dict.fromkeys(check_int(f"{field}[…]", each, 0, MAX_TOKEN_ID) for each in ids))


def check_strings(field: str, value: object, max_count: int, max_chars: int) -> tuple[str, ...]:
    """None, one string or a sequence of strings, each non-empty; repeated strings are dropped."""
    if value is None:
        return ()
    strings: Sequence[object] = (value,) if isinstance(value, str) else value  # type: ignore[assignment]
    accepted = f"a non-empty string or a list of at most {max_count} of them, each at most {max_chars} characters"
    if not isinstance(strings, list | tuple) or len(strings) > max_count:
        raise refuse(field, value, accepted)
    for each in strings:
        if not isinstance(each, str) or not 0 < len(each) <= max_chars:
            raise refuse(f"{field}[…]", each, accepted)
    return tuple(dict.fromkeys(str(each) for each in strings))


def check_bias(field: str, value: object) -> dict[int, float]:
    """None or a mapping of token id to a finite bias, or -inf to forbid the token; returned as a fresh dict."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refuse(field, value, "a dict of token id to number")
    return {check_int(f"{field} key", key, 0, MAX_TOKEN_ID): _bias(field, key, each) for key, each in value.items()}


def _bias(field: str, key: object, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or value == math.inf:  # type: ignore[arg-type]
        raise refuse(f"{field}[{key}]", value, "a finite number, or -inf to forbid the token")
    return float(value)  # type: ignore[arg-type]


def _inside(value: float, low: float, high: float, open_low: bool) -> bool:
    return math.isfinite(value) and low <= value <= high and not (open_low and value == low)


def _int_range(low: int, high: int) -> str:
    return f"an integer >= {low}" if high >= MAX_TOKEN_ID else f"an integer in [{low}, {high}]"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
