"""How many bytes a packed weight takes, known without torch: what a plan counts and a lease asks for."""

from __future__ import annotations

from ..core.errors import ConfigError, choices

PANEL = 16
BITS = {
    "fp32": 32,
    "bf16": 16,
    "int8": 8,
    "int4": 4,
    "ternary": 2,
    "int5": 5,
    "fp16": 16,
    "fp8": 8,
    "nf4": 4,
    "bf12": 16,
}
"""Of a field; bf12's are 12 bits in memory, and 16 where they are multiplied (`bf12`)."""
GROUPS = {"int4": (32, 64, 128), "int5": (48, 96), "nf4": (32, 64, 128)}
"""Formats whose inputs share scales in groups, and how many may: whole blocks, and whole halves of a cache line."""
PLAIN = ("fp32", "bf16", "fp16", "bf12")
LARGEST_FP8 = 448.0
MAX_BLOCKS = 16  # of a bitstack
CHUNK_BYTES, WINDOW_BYTES = 192, 12  # bf12: four lines, and what is known of a panel beside its exceptions
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""As published (QLoRA, arXiv:2305.14314): quantiles of N(0, 1), scaled so that the ends are -1 and 1, and a 0."""


def packed_nbytes(
    format: str, outputs: int, inputs: int, *, group: int = 0, zeros: bool = False, wide_scales: bool = False,
    experts: int = 1,
) -> int:  # fmt: skip
    """The bytes of such a weight (`packed.PackedWeight` draws it), without making it. Raises ConfigError."""
    check_packed(format, group)
    panels = -(-outputs // PANEL)
    data = panels * bytes_of_panel(format, inputs)
    if format == "bf12":
        extra = panels * WINDOW_BYTES
    elif format in GROUPS:
        extra = panels * -(-inputs // group) * PANEL * ((4 if wide_scales else 2) + (1 if zeros else 0))
    else:
        extra = 0 if format in PLAIN else panels * PANEL * 4
    return experts * (data + extra)


def bytes_of_panel(format: str, inputs: int) -> int:
    """Of a panel's data."""
    blocks = num_blocks(format, inputs)
    return -(-blocks // 4) * CHUNK_BYTES if format == "bf12" else blocks * PANEL * 4


def data_shape(format: str, panels: int, inputs: int) -> tuple[int, int, int]:
    """Of the data of so many panels (`packed.PackedWeight`)."""
    line = CHUNK_BYTES if format == "bf12" else PANEL * 4
    return panels, bytes_of_panel(format, inputs) // line, line


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
