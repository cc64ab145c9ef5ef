"""How many bytes a packed weight takes, known without torch: what a plan counts and a lease asks for."""

from __future__ import annotations

from ..core.errors import ConfigError, choices

PANEL = 16
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "ternary": 2}
GROUPS = (32, 64, 128)
PLAIN = ("fp32", "bf16")


def packed_nbytes(
    format: str, outputs: int, inputs: int, *, group: int = 0, zeros: bool = False, wide_scales: bool = False,
    experts: int = 1,
) -> int:  # fmt: skip
    """The bytes of such a weight (`packed.PackedWeight` draws it), without making it. Raises ConfigError."""
    check_packed(format, group)
    panels, block = -(-outputs // PANEL), 32 // BITS[format]
    data = panels * -(-inputs // block) * PANEL * 4
    if format == "int4":
        extra = panels * -(-inputs // group) * PANEL * ((4 if wide_scales else 2) + (1 if zeros else 0))
    else:
        extra = 0 if format in PLAIN else panels * PANEL * 4
    return experts * (data + extra)


def check_packed(format: str, group: int) -> None:
    """Raises ConfigError for a format that does not exist, or a group that it does not have."""
    if format not in BITS:
        raise ConfigError(choices("packed format", format, BITS))
    if format == "int4" and group not in GROUPS:
        raise ConfigError(choices("group of int4", group, GROUPS))
    if format != "int4" and group:
        raise ConfigError(f"{format} has no groups; a group of {group} was asked for")
