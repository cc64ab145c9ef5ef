"""``quantization=``: which matrix is kept in which weight format. No torch.

``int4(group=64)`` is one format for every linear layer; embedding and head take what its ``embed`` parameter says;
norms, biases, routers and position tables stay in the model's dtype. A stored checkpoint may name other formats for
single parameters (mixed precision).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..core.calls import build_call, format_call, parse_calls
from ..core.errors import ConfigError, choices
from ..kernels.preferred import prefers_bf12
from .formats import FORMATS
from .formats.base import WeightFormat

Role = Literal["linear", "experts", "embed", "plain"]
"""What a parameter is for: a linear layer's matrix, stacked matrices of experts, a vocabulary's rows, or neither."""

UNPACKED = ("auto", "none")
EXPERT = "@"
"""``<parameter>@<expert>``: one expert's matrix of a stack, in `Quantization.overrides` and in our own checkpoints."""
_EXAMPLE = "int4(group=64, symmetric=True)"


@dataclass(frozen=True)
class Quantization:
    """Formats by role, and by parameter name where ``overrides`` says so; None is the model's own dtype.

    Experts of one stack may have formats of their own, all of them then: ``overrides`` by ``<parameter>@<expert>``.
    """

    linear: WeightFormat | None = None
    embed: WeightFormat | None = None
    overrides: Mapping[str, WeightFormat | None] = field(default_factory=dict)

    def of(self, name: str, role: Role, expert: int = -1) -> WeightFormat | None:
        """The format of a parameter, or of one ``expert``'s matrix in it."""
        if expert >= 0 and (own := f"{name}{EXPERT}{expert}") in self.overrides:
            return self.overrides[own]
        if name in self.overrides:
            return self.overrides[name]
        return {"linear": self.linear, "experts": self.linear, "embed": self.embed, "plain": None}[role]

    def each(self, name: str, role: Role, count: int) -> Mapping[WeightFormat | None, int]:
        """Formats of a parameter's ``count`` matrices, and how many have each."""
        if f"{name}{EXPERT}0" not in self.overrides:
            return {self.of(name, role): count}
        return Counter(self.of(name, role, expert) for expert in range(count))

    def __str__(self) -> str:
        """The option's text; of a stored checkpoint, its formats, the most common first."""
        if not self.overrides:
            return format_text(self.linear)
        counts = Counter(format_text(found) for found in self.overrides.values())
        return " + ".join(text for text, _ in counts.most_common())

    @property
    def is_plain(self) -> bool:
        """Whether every matrix stays in the model's dtype."""
        return self.linear is None and self.embed is None and not self.overrides


def parse_quantization(text: str) -> Quantization:
    """What ``text`` asks for; ``none`` is the model's own dtype. Raises ConfigError that lists what exists."""
    if not isinstance(text, str):
        raise ConfigError(f"quantization is {text!r}; give a name, for example {_EXAMPLE}")
    if text.strip() in UNPACKED:
        return Quantization()
    linear = parse_format(text)
    if linear.embed == "same":
        return Quantization(linear, linear)
    return Quantization(linear, None if linear.embed == "none" else parse_format(linear.embed))


def in_panels(dtype: str, *, halves: bool = False, isa: str = "") -> Quantization:
    """Nothing is quantized, but matrices lie in the order in which the CPU kernels of ``isa`` read them.

    dtype is float32 or bfloat16. ``halves``: numbers of a float16 checkpoint stay so where the model runs in float32,
    which holds every one of them.
    """
    short = "bf12" if prefers_bf12(isa) else "bf16"
    name = "fp16" if halves and dtype == "float32" else {"float32": "fp32", "bfloat16": short}[dtype]
    plain = parse_format(name)
    return Quantization(plain, plain)


def parse_format(text: str) -> WeightFormat:
    """One format by its text. Raises ConfigError."""
    calls = parse_calls(text, option="quantization", example=_EXAMPLE)
    if len(calls) > 1:
        raise ConfigError(f"quantization={text!r}: a matrix has one format; name one of them")
    (call,) = calls
    if call.name not in FORMATS.names():
        raise ConfigError(choices("quantization", call.name, [*UNPACKED, *FORMATS.names()]))
    cls = FORMATS.get(call.name)
    assert isinstance(cls, type), f"{call.name}: FORMAT is not a class"
    assert issubclass(cls, WeightFormat), f"{call.name}: FORMAT is not a WeightFormat"
    return build_call(cls, call)


def format_text(found: WeightFormat | None) -> str:
    """The shortest text that ``parse_format`` (or ``none``) reads as this format."""
    return "none" if found is None else format_call(found.name, found)
