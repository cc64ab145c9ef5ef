"""What `pagoda bench weights` prices, by name: a format, or ``FORMAT by METHOD`` (`weights_made`). No torch: names are
checked before any is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.errors import ConfigError, choices
from ..weights.method_names import BY_MATRIX, READING
from ..weights.quantization import parse_quantization

BY = " by "
WHOLE = ("distill", "mixed", "mixed+distill")
"""Methods that run the whole rounded model."""
USUAL = (
    "int4(group=32)", "int4(embed='same')", "int5(embed='same')", "int5 by gptq", "int4 by gptq",
    "int4 by distill", "int4(group=32) by awq", "int4(group=32) by hqq", "int4(group=32) by gptq",
    "int4(group=32) by distill", "int4(group=32) by mixed", "int4 by mixed", "int3(rank=0) by mixed",
    "int4(group=32) by mixed+distill", "0.9 by width",
)  # fmt: skip
"""Priced beside all formats when none are named."""


def check_name(name: str) -> None:
    """Raises ConfigError where it says no model that could be made."""
    what, by, how = name.partition(BY)
    if how == "width":
        share_of(name)
        return
    if by and how not in (*BY_MATRIX, *WHOLE):
        raise ConfigError(f"{name}: {choices('method', how, (*BY_MATRIX, *WHOLE, 'width'))}")
    parse_quantization(what)


def share_of(name: str) -> float:
    """Of the neurons, that ``SHARE by width`` keeps. Raises ConfigError."""
    text = name.partition(BY)[0]
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is no share of neurons; give a number like 0.9") from None


def read_text(names: Iterable[str]) -> bool:
    """Whether any of them is made by a method that reads calibration text."""
    return any(name.endswith(tuple(BY + how for how in READING)) for name in names)
