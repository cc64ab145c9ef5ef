"""Bytes in and out of text. Every figure inside Pagoda is an ``int`` of bytes; text exists only at the edge."""

from __future__ import annotations

import re
from fractions import Fraction

from .errors import ConfigError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# A bare letter is binary, as in docker, systemd and ulimit: "512M" is what 512 MiB is. Only an explicit B is decimal.
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}i"] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power

ACCEPTED_FORMS = (
    "a whole number of bytes, or a number and a unit: 2GiB, 1.5 GB, 512M (K, M, G, T: powers of 1024; KB…TB: of 1000)"
)
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", re.ASCII)


def parse_bytes(value: str | int, *, what: str = "size") -> int:
    """``"2GiB"``, ``"1.5 GB"``, ``"512M"``, ``4096`` -> bytes, exactly (a part of a byte is dropped).

    Raises ConfigError, listing the accepted forms, for anything else: negative, unknown unit, bool, float.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _PATTERN.fullmatch(value) if isinstance(value, str) else None
    scale = _UNITS.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise ConfigError(f"{what} {value!r} is not a size in bytes; accepted: {ACCEPTED_FORMS}")
    number = Fraction(match[1].rstrip("."))
    if scale == 1 and number.denominator != 1:
        raise ConfigError(f"{what} {value!r} has no unit and is not whole; accepted: {ACCEPTED_FORMS}")
    return int(number * scale)


def format_bytes(num_bytes: int) -> str:
    """Three significant digits in binary units: ``0 B``, ``1.50 KiB``, ``20.0 MiB``, ``-3.25 GiB``."""
    sign, size = ("-", -num_bytes) if num_bytes < 0 else ("", num_bytes)
    if size < KIB:
        return f"{sign}{size} B"
    fits = (pair for pair in (("KiB", KIB), ("MiB", MIB), ("GiB", GIB)) if size < 1023.5 * pair[1])
    unit, scale = next(fits, ("TiB", TIB))
    number = size / scale
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{sign}{number:.{digits}f} {unit}"
