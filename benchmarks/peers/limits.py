"""The most tokens a second that a machine allows: bytes at the bandwidth of that minute, or operations at the rate of
its registers.

`roofline` takes torch's large products for what the machine can multiply, which measures it in the same minute. That
is no limit: on a machine with AMX they reach a third of what its tiles do, and kernels pass them. Here the rate is that
of one instruction in a loop of sixteen that do not wait for one another, operands in registers, all cores
(``python -m benchmarks.probe --registers``). And the last layer of a prompt is K and V alone, except for the token that
is sampled: whoever computes more does so by choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from .settings import SETTINGS
from .shapes import SHAPES, Shape
from .summary import OURS_TOO, Figure


@dataclass(frozen=True)
class Registers:
    """G operations a second of all cores, and by which instructions."""

    bf16: float
    int8: float
    by: str


REGISTERS = {
    "amd-epyc-25-17": Registers(472, 944, "vdpbf16ps, vpdpbusd"),
    "intel-xeon-6-167": Registers(6500, 12500, "tdpbf16ps, tdpbssd"),
    "intel-xeon-6-167-without-amx-tile": Registers(446, 1650, "vfmadd of float32, vpdpbusd"),
}
BITS = {"bf16": (16, 16), "int8": (8, 8), "int4": (4 + 16 / 128, 8)}  # of Pagoda's layers and head


@dataclass(frozen=True)
class Limit:
    rate: float  # tokens a second
    bound: str  # "read" or "multiply"


def limit(machine: str, figure: Figure) -> Limit | None:
    """For what ``figure`` measured; None of a machine whose registers nobody measured."""
    registers = REGISTERS.get(machine)
    if registers is None:
        return None
    shape, setting = SHAPES[figure.shape], SETTINGS[figure.setting]
    if figure.metric == "prefill":
        done = setting.batch * setting.prompt
        linear, attention = prompt_operations(shape, setting.batch, setting.prompt)
    else:
        done, length = setting.batch, setting.prompt + setting.new // 2
        linear, attention = shape.linear_flops(done, done), shape.attention_flops(done * length)
    reading = reading_seconds(figure)
    rate = registers.bf16 if figure.weights == "bf16" else registers.int8
    multiplying = (linear / rate + attention / registers.bf16) / 1e9
    return Limit(done / max(reading, multiplying), "read" if reading > multiplying else "multiply")


def reading_seconds(figure: Figure) -> float:
    """Of a step, or a prompt: weights of as many bits as the figure's, whatever they are kept in, and KV."""
    shape, setting = SHAPES[figure.shape], SETTINGS[figure.setting]
    layers, head = BITS[figure.weights]
    moved = (shape.layer_params * layers + shape.head_params * head) / 8
    if figure.metric != "prefill":
        own = setting.batch * (setting.prompt + setting.new // 2 - setting.shared)
        moved += shape.kv_bytes(setting.shared + own, 8 if figure.engine == OURS_TOO else 16)
    return moved / figure.read_gb_s / 1e9


def prompt_operations(shape: Shape, batch: int, prompt: int) -> tuple[float, float]:
    """(products, attention) of prompts of whose tokens the last is sampled."""
    tokens, pairs = batch * prompt, batch * prompt * (prompt + 1) // 2
    a_layer, kv = shape.layer_params // shape.layers, 2 * shape.hidden * shape.kv_heads * shape.head_dim
    linear = 2 * (tokens * (a_layer * (shape.layers - 1) + kv) + batch * (a_layer - kv + shape.head_params))
    attention = shape.attention_flops(pairs) * (shape.layers - 1) + shape.attention_flops(tokens)
    return linear, attention / shape.layers
