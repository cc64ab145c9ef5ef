"""Machines by what their makers publish, and models by their configs: what capacity questions are asked about.

``machines.yaml`` and ``published.yaml`` lie beside this file; users add machines with a file of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # stubs are a package of their own

from ..core.errors import ConfigError, choices
from ..core.types import DTYPE_BYTES, KVFormat
from ..core.units import parse_bytes
from ..models.catalog import read_config
from ..models.shape import ModelShape
from ..weights.quantization import Quantization
from .machine import Machine
from .roofline import Roofline

HERE = Path(__file__).parent
DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class MachineType:
    """One kind of machine. ``flops_share`` and ``bytes_share``: what serving reaches of the peaks; ``step_seconds``:
    what a step costs beside; ``memory_share``: what weights and KV may have of the memory. Links go to another machine
    and to the host that it stands in.
    """

    name: str
    teraflops: float
    gigabytes_per_second: float
    memory_bytes: int
    dollars_per_hour: float = 0.0
    link_gigabytes_per_second: float = 25.0
    host_gigabytes_per_second: float = 20.0
    flops_share: float = 0.6
    bytes_share: float = 0.8
    memory_share: float = 0.9
    step_seconds: float = 0.002

    def rates(self, shape: ModelShape) -> Machine:
        """The same numbers as a measured machine has. Attention is bound by the bytes of KV, prompts by operations."""
        flops = self.teraflops * 1e12 * self.flops_share
        read = self.gigabytes_per_second * 1e9 * self.bytes_share
        per_head = DTYPE_BYTES[DTYPE] * shape.num_kv_heads / shape.num_q_heads
        return Machine(
            cpu=self.name, threads=1, runtime_bytes=0, read_bytes_per_second=read, disk_bytes_per_second=read,
            flops=flops, attend={"auto": per_head / read}, attend_prompt=2 / flops, step=self.step_seconds,
        )  # fmt: skip

    def cost(self, shape: ModelShape) -> Roofline:
        """Step times of the model in plain 16 bit."""
        return Roofline(shape, DTYPE, Quantization(), "auto", self.rates(shape))

    def kv_blocks(self, shape: ModelShape, page_size: int) -> int:
        """Blocks of KV beside the weights. Raises ConfigError where there is no room for one."""
        weights = shape.weight_bytes(DTYPE)
        blocks = int((self.memory_share * self.memory_bytes - weights) // shape.kv_format(page_size, DTYPE).block_bytes)
        if blocks < 1:
            raise ConfigError(
                f"{weights / 1e9:.0f} GB of weights leave no room for KV in {self.name} with "
                f"{self.memory_bytes / 1e9:.0f} GB"
            )
        return blocks


def machine_types(more: Path | None = None) -> dict[str, MachineType]:
    """By name; those in ``more`` added or replaced. Raises ConfigError naming the file, the machine and the field."""
    found = {}
    for file in (HERE / "machines.yaml", *([more] if more is not None else [])):
        for name, given in _read(file).items():
            found[str(name)] = _machine_type(file, str(name), given)
    return found


def pick_machine(name: str, more: Path | None = None) -> MachineType:
    """The one of that name. Raises ConfigError listing what there is."""
    known = machine_types(more)
    if name not in known:
        raise ConfigError(choices("machine", name, known))
    return known[name]


def model_config(name: str) -> Mapping[str, Any]:
    """``config.json`` of a published model, or of a folder, lantern or a hub id."""
    known = _read(HERE / "published.yaml")
    config: Mapping[str, Any] = known[name] if name in known else read_config(name)
    return config


def as_one_head(fmt: KVFormat) -> KVFormat:
    """One head as wide as all of them: exact sequences take whole blocks, and a block of one page counts the same bytes
    with a thousandth of the bookkeeping.
    """
    heads = fmt.pages_per_block
    return KVFormat(1, 1, heads * fmt.k_dim, heads * fmt.v_dim, fmt.page_size, fmt.dtype, heads * fmt.slot_bytes)


def _read(file: Path) -> dict[Any, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{file}: accepted: names with fields below them, as in {HERE / 'machines.yaml'}")
    return data


def _machine_type(file: Path, name: str, given: Any) -> MachineType:
    names = [f.name for f in fields(MachineType) if f.name not in ("name", "memory_bytes")]
    if not isinstance(given, dict):
        raise ConfigError(f"{file}: {name} is {given!r}; accepted: the fields memory, {', '.join(names)}")
    missing = {"teraflops", "gigabytes_per_second", "memory"} - set(given)
    if missing:
        raise ConfigError(f"{file}: {name} has no {', '.join(sorted(missing))}")
    for key, value in given.items():
        if key == "memory":
            continue
        if key not in names:
            raise ConfigError(choices(f"field of {name} in {file}", str(key), ["memory", *names]))
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ConfigError(f"{file}: {key} of {name} is {value!r}; give a number from 0")
        if value == 0 and key not in ("dollars_per_hour", "step_seconds"):
            raise ConfigError(f"{file}: {key} of {name} is 0; give a number above 0")
    numbers = {key: float(value) for key, value in given.items() if key != "memory"}
    return MachineType(name=name, memory_bytes=parse_bytes(given["memory"], what=f"memory of {name}"), **numbers)
