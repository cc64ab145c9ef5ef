"""Seconds of a step: products, attention and what every step costs, each from the rates of the machine.

    step = fixed + layers + rows + sum over matrices (weights x seconds a weight at that many tokens) + attention

A product at one token is bound by the bytes of the weights, at many by operations; the calibrated curves hold both. Of
a mixture only the experts that some token chose are read: of E experts, h = E (1 - (1 - k/E)^T) at T tokens of k each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from ..core.types import DTYPE_BYTES
from ..kv.codecs.base import with_dtype
from ..models.shape import ModelShape
from ..weights.formats.base import WeightFormat
from ..weights.quantization import Quantization, Role, format_text
from .machine import Machine
from .work import StepModel

EMBED, HEAD = "embed.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class _Group:
    """Matrices alike: so many weights in one format, for one purpose; of layers with ``count`` experts."""

    format: str
    role: Role
    weights: int
    bytes_per_weight: float
    count: int = 1


class Roofline(StepModel):
    """The step times of one model in one weight format, with KV stored in one way."""

    def __init__(
        self, shape: ModelShape, dtype: str, quantization: Quantization, kv_dtype: str, machine: Machine
    ) -> None:
        self._shape, self._machine = shape, machine
        self._groups = _groups(shape, dtype, quantization)
        self._slot_bytes = with_dtype(shape.kv_format(1, dtype), kv_dtype).bytes_per_token
        self._attend = machine.attend_seconds(kv_dtype)
        self._attend_prompt = machine.attend_prompt
        self._windows = list(Counter(window or None for window in shape.windows).items())
        self._numbers = shape.num_q_heads * (shape.k_dim + (shape.v_dim or shape.k_dim))  # of a slot, in all heads
        self._known: dict[tuple[int, int], float] = {}

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        key = decodes + chunk, rows
        if key not in self._known:
            self._known[key] = self._beside_attention(*key)
        return self._known[key] + self._attention(decodes, slots, chunk, pairs)

    def _beside_attention(self, tokens: int, rows: int) -> float:
        products = sum(self._product(group, tokens, rows) for group in self._groups)
        return self.fixed_seconds(rows) + products

    def fixed_seconds(self, rows: int) -> float:
        """What a step costs beside products and attention."""
        machine, shape = self._machine, self._shape
        fixed = machine.step + machine.layer * shape.num_layers + machine.row * rows
        return fixed + machine.sample * rows * shape.vocab_size

    def product_seconds(self, role: Role, tokens: int, rows: int) -> float:
        """Of the matrices for one purpose (``embed``: the head)."""
        return sum(self._product(group, tokens, rows) for group in self._groups if group.role == role)

    def attention_seconds(self, decodes: int, slots: float, chunk: int, pairs: float) -> float:
        """Arguments as of ``step_seconds``."""
        return self._attention(decodes, slots, chunk, pairs)

    def read_bytes(self, tokens: int, rows: int, slots: float) -> float:
        """What a step reads from memory: weights once, of experts those that are chosen, and KV of decodes. Nothing
        where all weights stay in a cache.
        """
        weights = sum(
            group.weights * group.bytes_per_weight * self._share(group, tokens)
            for group in self._groups
            if rows or group.role != "embed"
        )
        return 0.0 if weights <= self._machine.cache_bytes else weights + slots * self._slot_bytes

    def _share(self, group: _Group, tokens: int) -> float:
        """Of the experts, those that so many tokens choose."""
        if group.role != "experts":
            return 1.0
        return 1 - (1 - self._shape.experts_per_token / group.count) ** tokens

    def _product(self, group: _Group, tokens: int, rows: int) -> float:
        each, share = float(rows if group.role == "embed" else tokens), self._share(group, tokens)
        if group.role == "experts" and tokens:
            each = tokens * self._shape.experts_per_token / (group.count * share)
        seconds = self._machine.weight_seconds(group.format, each, group.bytes_per_weight)
        return group.weights * share * seconds if each else 0.0

    def _attention(self, decodes: int, slots: float, chunk: int, pairs: float) -> float:
        """A layer with a window reads no more of each sequence; sequences count as equally long for that."""
        total = 0.0
        for window, layers in self._windows:
            read = slots if window is None else min(slots, decodes * window)
            seen = pairs if window is None else min(pairs, chunk * window)
            total += layers * (read * self._attend + seen * self._attend_prompt)
        return self._numbers * total


def _groups(shape: ModelShape, dtype: str, quantization: Quantization) -> list[_Group]:
    """Matrices by format and role. A tied embedding is multiplied as the head; an untied one is only looked up in."""
    tied = not any(matrix.name == HEAD for matrix in shape.matrices)
    sums: dict[tuple[str, Role, int], tuple[int, int]] = {}
    for matrix in shape.matrices:
        if matrix.name == EMBED and not tied:
            continue
        for found, count in quantization.each(matrix.name, matrix.role, matrix.count).items():
            size = matrix.rows * matrix.cols * count
            plain = size * DTYPE_BYTES[dtype]
            num_bytes = plain if found is None else count * found.num_bytes(matrix.rows, matrix.cols)
            key = (f"none.{dtype}" if found is None else _measured_as(found), matrix.role, matrix.count)
            weights, held = sums.get(key, (0, 0))
            sums[key] = weights + size, held + num_bytes
    return [_Group(name, role, weights, held / weights, count) for (name, role, count), (weights, held) in sums.items()]


def _measured_as(format: WeightFormat) -> str:
    """The format as its products were measured: what it says of embeddings changes nothing in them."""
    return format_text(replace(format, embed=type(format).embed))
