"""Seconds of a step, from what is in it: the part of the machine that the simulator does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ...core.errors import ConfigError, choices
from ...core.types import KVFormat
from ...schedule.item import Scheduled

T = TypeVar("T")


class StepCost(Protocol):
    """Whatever knows how long a step takes."""

    def seconds(self, scheduled: Sequence[Scheduled]) -> float: ...


@dataclass(frozen=True, slots=True)
class LinearCost:
    """``base + max(floor, token x tokens) + slot x KV slots read + pair x (prompt tokens x slots that they see)``.

    ``floor`` is the time to read the weights: small steps are bound by it, large ones by arithmetic. All in seconds.
    """

    base: float
    floor: float
    token: float
    slot: float
    pair: float

    def seconds(self, scheduled: Sequence[Scheduled]) -> float:
        tokens = slots = pairs = 0
        for s in scheduled:
            tokens += s.num_tokens
            slots += s.start
            if s.num_tokens > 1:
                pairs += s.num_tokens * (2 * s.start + s.num_tokens) // 2
        return self.base + max(self.floor, self.token * tokens) + self.slot * slots + self.pair * pairs


@dataclass(frozen=True, slots=True)
class Device:
    """Published peaks, and the shares of them that serving reaches (guesses that every result is only as good as)."""

    flops: float
    bytes_per_second: float
    memory_bytes: int
    flops_share: float = 0.6
    bytes_share: float = 0.8
    step_seconds: float = 0.002


@dataclass(frozen=True, slots=True)
class Model:
    """What a step costs depends on: weights and the shape of KV, 16 bit both."""

    num_weights: float
    num_layers: int
    num_kv_heads: int
    num_q_heads: int
    head_dim: int

    def kv_format(self, page_size: int) -> KVFormat:
        """One head as wide as all of them: exact sequences take whole blocks, and a block of one page counts the same
        bytes with a thousandth of the bookkeeping.
        """
        width = self.num_layers * self.num_kv_heads * self.head_dim
        return KVFormat(1, 1, width, width, page_size, "bfloat16")


DEVICES = {
    "a100-80g": Device(312e12, 2.039e12, 80 * 10**9),
    "h100-80g": Device(989e12, 3.35e12, 80 * 10**9),
    "l4": Device(121e12, 0.3e12, 24 * 10**9),
}
MODELS = {
    "llama-2-7b": Model(6.74e9, 32, 32, 32, 128),
    "llama-3.1-8b": Model(8.03e9, 32, 8, 32, 128),
    "mistral-7b": Model(7.24e9, 32, 8, 32, 128),
}


def pick(kind: str, table: Mapping[str, T], name: str) -> T:
    """The device or model of that name. Raises ConfigError listing what is known."""
    if name not in table:
        raise ConfigError(choices(kind, name, table))
    return table[name]


def roofline(device: Device, model: Model) -> LinearCost:
    """The cost of the model on the device: weights once a step or 2 operations a weight and token, KV once a step."""
    flops, bandwidth = device.flops * device.flops_share, device.bytes_per_second * device.bytes_share
    return LinearCost(
        base=device.step_seconds,
        floor=2 * model.num_weights / bandwidth,
        token=2 * model.num_weights / flops,
        slot=model.kv_format(16).bytes_per_token / bandwidth,
        pair=4 * model.num_layers * model.num_q_heads * model.head_dim / flops,
    )


def kv_blocks(device: Device, model: Model, page_size: int) -> int:
    """Blocks of KV beside the weights, a tenth of the memory left for activations and the rest."""
    free = 0.9 * device.memory_bytes - 2 * model.num_weights
    blocks = int(free // model.kv_format(page_size).block_bytes)
    if blocks < 1:
        weights, memory = 2 * model.num_weights / 1e9, device.memory_bytes / 1e9
        raise ConfigError(f"{weights:.0f} GB of weights leave no room for KV in {memory:.0f} GB")
    return blocks
