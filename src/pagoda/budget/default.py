"""From what the user said about memory to a number of bytes, with the reason kept.

==================  ==================================================================================================
said                budget
==================  ==================================================================================================
``"2GiB"``, bytes   exactly that; refused when the machine or its cgroup could never give it
``0.5``, ``"50%"``  that share of the machine's memory, or of the cgroup's limit if smaller (of the total, not of what
                    happens to be free: the same command means the same budget tomorrow)
nothing             what the cgroup and the machine leave to this process now, minus a margin of 5 %, at least 256 MiB
==================  ==================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from ..core.errors import BudgetError, ConfigError
from ..core.units import ACCEPTED_FORMS, MIB, format_bytes, parse_bytes
from .probe import MachineProbe

# What the budget leaves to others when nobody said a number: the kernel's own bookkeeping of our pages (page tables are
# 0.2 %), a shell, and the drift of MemAvailable between the measurement and the first touch of the pages.
MARGIN_SHARE, MARGIN_FLOOR_BYTES = Fraction(1, 20), 256 * MIB

_ACCEPTED = f"{ACCEPTED_FORMS}; or a share of the machine above 0 and up to 1: 0.5, 50%"


@dataclass(frozen=True, slots=True)
class Budget:
    """So many bytes, and who said so (shown by the plan, the doctor and in refusals)."""

    total_bytes: int
    reason: str


def default_budget(
    memory: str | int | float | None, probe: MachineProbe | None = None, *, what: str = "memory"
) -> Budget:
    """The budget that ``memory=`` (or the option ``what``) asks for. The table above says how.

    Raises ConfigError for text or numbers that are neither, BudgetError for more than the machine can ever give.
    """
    probe = probe or MachineProbe()
    if memory is None:
        return _what_is_left(probe)
    share = _share(memory, what)
    if share is None:
        return _absolute(memory, probe, what)
    limit, source = probe.limit()
    return Budget(int(limit * share), f"{float(share):.0%} of {format_bytes(limit)}, {source}")


def check_budget(memory: str | int | float | None, *, what: str = "memory") -> None:
    """Raises ConfigError for what is no budget on any machine."""
    if memory is not None and _share(memory, what) is None:
        _bytes(memory, what)


def smaller_budget(
    total: str | int | float | None, part: str | int | float | None, probe: MachineProbe, *, what: str = "host_memory"
) -> Budget:
    """The budget of one place (the option ``what``), bounded by what was said about all places together."""
    if part is None:
        return default_budget(total, probe)
    of_part = default_budget(part, probe, what=what)
    return of_part if total is None else min(default_budget(total, probe), of_part, key=lambda one: one.total_bytes)


def _what_is_left(probe: MachineProbe) -> Budget:
    room, source = probe.headroom()
    margin = max(MARGIN_FLOOR_BYTES, int(room * MARGIN_SHARE))
    if room <= margin:
        raise BudgetError(
            f"{source} leaves {format_bytes(room)} to this process, no more than the margin of {format_bytes(margin)}; "
            "free some memory, raise the cgroup's limit, or state a budget (for example memory='512MiB')"
        )
    return Budget(room - margin, f"{source} {format_bytes(room)} minus a margin of {format_bytes(margin)}")


def _bytes(memory: str | int | float, what: str) -> int:
    try:
        num_bytes = parse_bytes(memory, what=what)  # type: ignore[arg-type]  # floats are refused there
    except ConfigError:
        raise ConfigError(f"{what} {memory!r} is not a budget; accepted: {_ACCEPTED}") from None
    if num_bytes == 0:
        raise ConfigError(f"{what} {memory!r} is no memory at all; accepted: {_ACCEPTED}")
    return num_bytes


def _absolute(memory: str | int | float, probe: MachineProbe, what: str) -> Budget:
    num_bytes = _bytes(memory, what)
    limit, source = probe.limit()
    if num_bytes > limit:
        raise BudgetError(
            f"{what} {memory!r} is {format_bytes(num_bytes)}, but {source} has {format_bytes(limit)}; "
            f"ask for at most {limit >> 20}MiB"
        )
    return Budget(num_bytes, f"stated: {memory}")


def _share(memory: str | int | float, what: str) -> Fraction | None:
    """The share of the machine that ``memory`` means; None where it is a size. An int is bytes, ``1`` included."""
    if isinstance(memory, int):
        return None
    text = str(memory).strip()
    try:
        share = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text) if "." in text else None
    except (ValueError, ZeroDivisionError):
        return None
    if share is None or 0 < share <= 1:
        return share
    raise ConfigError(f"{what} {memory!r} is not a share between 0 and 1; accepted: {_ACCEPTED}")
