"""How many bytes a packed weight takes, known without torch: what a plan counts and a lease asks for."""

from __future__ import annotations

from ..core.errors import ConfigError, choices

PANEL = 16
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "ternary": 2, "int5": 5}
GROUPS = {"int4": (32, 64, 128), "int5": (48, 96)}
"""Formats whose inputs share scales in groups, and how many may: whole blocks, and whole halves of a cache line."""
PLAIN = ("fp32", "bf16")


def packed_nbytes(
    format: str, outputs: int, inputs: int, *, group: int = 0, zeros: bool = False, wide_scales: bool = False,
    experts: int = 1,
) -> int:  # fmt: skip
    """The bytes of such a weight (`packed.PackedWeight` draws it), without making it. Raises ConfigError."""
    check_packed(format, group)
    panels = -(-outputs // PANEL)
    data = panels * num_blocks(format, inputs) * PANEL * 4
    if format in GROUPS:
        extra = panels * -(-inputs // group) * PANEL * ((4 if wide_scales else 2) + (1 if zeros else 0))
    else:
        extra = 0 if format in PLAIN else panels * PANEL * 4
    return experts * (data + extra)


def num_blocks(format: str, inputs: int) -> int:
    """Blocks of a row: 32 bits hold as many whole fields as they can."""
    return -(-inputs // (32 // BITS[format]))


def row_bytes(format: str, inputs: int) -> int:
    """Bytes of a row as it is stored (`lay_out.STORED`)."""
    return packed_width(inputs, BITS[format])


def packed_width(inputs: int, bits: int) -> int:
    """Bytes of so many fields side by side: whole blocks where fields do not fill 32 bits."""
    return -(-inputs // (32 // bits)) * 4 if 32 % bits else -(-inputs * bits // 8)


def check_packed(format: str, group: int) -> None:
    """Raises ConfigError for a format that does not exist, or a group that it does not have."""
    if format not in BITS:
        raise ConfigError(choices("packed format", format, BITS))
    if format in GROUPS and group not in GROUPS[format]:
        raise ConfigError(choices(f"group of {format}", group, GROUPS[format]))
    if format not in GROUPS and group:
        raise ConfigError(f"{format} has no groups; a group of {group} was asked for")
