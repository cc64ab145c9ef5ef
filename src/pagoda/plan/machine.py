"""What this machine can do: measured once by ``pagoda doctor --calibrate``, kept in the user's cache folder.

Rates are those of our own kernels, not of a data sheet: products with every weight format at several step sizes,
attention over pages by the way KV is stored, what a step costs that computes nothing, the disk. Without a calibration a
guess stands in, from the cores and their instruction sets, and every plan says so.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..budget.probe import MachineProbe
from ..core.errors import ConfigError
from ..kernels.preferred import TILES, isa_of

VERSION = 1
GUESSED_BYTES_PER_SECOND = 10e9  # of one core
GUESSED_FLOPS = {TILES: 800e9, "avx512_bf16": 150e9, "avx512f": 90e9, "": 50e9}
"""Of one core that multiplies bfloat16 or integers, by the best instruction set that it has. Measured in whole prompts:
900e9 on a Xeon with AMX, 180e9 on a Zen 4 and 150e9 on that Xeon without AMX.
"""
GUESSED_FLOAT_FLOPS = {"avx512f": 90e9, "": 50e9}
"""The same where numbers are multiplied as float32, as those of ``AS_FLOATS`` are."""
AS_FLOATS = ("fp32", "fp16", "nf4", "int3", "int2", "dgq", "bitstack", "none.float32")
GUESSED_RUNTIME_BYTES = 420 << 20  # with a torch that may bring CUDA's libraries
CPU_RUNTIME_BYTES = 280 << 20  # with a torch built for CPUs alone: 234 to 250 MiB measured

Curve = tuple[tuple[int, float], ...]
"""``(tokens, seconds)`` with tokens ascending."""


@dataclass(frozen=True, slots=True)
class FarCosts:
    """Seconds that a step over KV in a lower tier takes beside a resident one's: of each layer, of each group of heads
    that comes at a time (in each layer), of each sequence that chooses pages (in each layer), of each page of a head
    that it chooses, of each read of a run from the disk, of each byte of it, and of each byte that is copied.
    """

    layer: float = 1.3e-4
    group: float = 2e-4
    choose: float = 5e-4
    page: float = 1e-6
    read: float = 5.5e-5
    read_byte: float = 1.3e-9
    copy: float = 2.2e-10


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of one machine.

    read_bytes_per_second   of memory, by all threads together: the usual pace
    read_paces         slow and fast, where the machine was seen to change; else nothing
    cache_bytes        of the last cache: weights that it holds are not read from memory
    runtime_bytes      RSS of a process that has imported the engine, before it loads anything
    products           weight format -> seconds a weight at so many tokens at a time
    attend             how KV is stored -> seconds for one multiply-add of decode attention (slot x head x element)
    attend_prompt      the same for a chunk of a prompt
    step, layer, row   seconds of a step, of each layer of it, and of each sequence in it, beside products and attention
    sample             seconds a logit: choosing the next token
    far                what KV in a lower tier costs
    flops              operations a second where a product was not measured (0: a guess by the number of cores)
    float_flops        the same of what is multiplied as float32 (0: as ``flops``)
    """

    cpu: str
    threads: int
    runtime_bytes: int
    read_bytes_per_second: float
    disk_bytes_per_second: float
    products: Mapping[str, Curve] = field(default_factory=dict)
    attend: Mapping[str, float] = field(default_factory=dict)
    attend_prompt: float = 0.0
    step: float = 0.0
    layer: float = 0.0
    row: float = 0.0
    sample: float = 0.0
    far: FarCosts = FarCosts()
    flops: float = 0.0
    float_flops: float = 0.0
    read_paces: tuple[float, ...] = ()
    cache_bytes: int = 0
    measured: bool = False
    version: int = VERSION

    @classmethod
    def guess(cls, probe: MachineProbe | None = None) -> Machine:
        """A stand-in, from the number of cores and what they can."""
        probe = probe or MachineProbe()
        cores, flags = probe.cpus(), probe.cpu_flags()
        flops, floats = cores * _guessed(GUESSED_FLOPS, flags), cores * _guessed(GUESSED_FLOAT_FLOPS, flags)
        return cls(
            cpu=probe.cpu_model(), threads=cores, runtime_bytes=guessed_runtime_bytes(),
            read_bytes_per_second=GUESSED_BYTES_PER_SECOND * cores, disk_bytes_per_second=500e6,
            attend={"auto": 2 / floats}, attend_prompt=2 / flops, step=3e-4, layer=2e-5, row=3e-5, flops=flops,
            float_flops=floats,
        )  # fmt: skip

    def weight_seconds(self, name: str, tokens: float, bytes_per_weight: float) -> float:
        """Seconds that one weight of format ``name`` takes when ``tokens`` tokens are multiplied with it.

        Between measured step sizes on a straight line; beyond the largest in proportion. A format that was not measured
        is bound by its bytes and by the guessed flops.
        """
        curve = self.products.get(name) or self.products.get(_ALIKE.get(name, ""))
        if not curve:
            flops = self.flops or GUESSED_FLOPS[""] * self.threads
            if self.float_flops and name.partition("(")[0] in AS_FLOATS:
                flops = self.float_flops
            return max(bytes_per_weight / self.read_bytes_per_second, 2 * tokens / flops)
        return _between(curve, max(tokens, 1.0))

    def attend_seconds(self, kv_dtype: str) -> float:
        """Seconds of one multiply-add of decode attention over KV stored that way."""
        known = self.attend
        return known.get(kv_dtype) or known.get("auto") or max(known.values(), default=0.0)


_ALIKE = {"bf12": "bf16"}
"""Formats of one kind: where the first was not measured yet, the second says more than a guess."""


def _guessed(by_set: Mapping[str, float], flags: Set[str]) -> float:
    """Of the first set that there is."""
    return next(value for name, value in by_set.items() if not name or name in flags or name == isa_of(flags))


def _between(curve: Curve, tokens: float) -> float:
    sizes = [size for size, _ in curve]
    at = bisect_right(sizes, tokens)
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1] * tokens / curve[-1][0]
    (low, before), (high, after) = curve[at - 1], curve[at]
    return before + (after - before) * (tokens - low) / (high - low)


def guessed_runtime_bytes() -> int:
    """RSS of the engine's imports, by what torch says of its build, which is not imported for it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        built = version("torch")
    except PackageNotFoundError:
        return GUESSED_RUNTIME_BYTES
    return CPU_RUNTIME_BYTES if built.endswith("+cpu") else GUESSED_RUNTIME_BYTES


def measured_formats() -> tuple[str, ...]:
    """The weight formats whose products are calibrated, as ``quantization=`` names them; ``none.*``: plain tensors."""
    return (
        "none.bfloat16", "fp32", "bf16", "bf12", "int8", "w8a8", "int5", "int4(group=32)", "int4", "w4a8", "ternary",
    )  # fmt: skip


def calibration_file() -> Path:
    """``$XDG_CACHE_HOME/pagoda/machine.json``, or in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pagoda" / "machine.json"


def save_machine(machine: Machine, file: Path | None = None) -> Path:
    """Written whole or not at all. Raises ConfigError where the folder cannot be written."""
    file = file or calibration_file()
    fresh = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(asdict(machine), indent=1) + "\n", encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot keep the calibration ({error.strerror}); set XDG_CACHE_HOME") from error
    return file


def load_machine(file: Path | None = None, probe: MachineProbe | None = None) -> tuple[Machine, str]:
    """The calibrated machine, or a guess; and where it comes from, for people.

    A calibration of another processor, another number of threads, or another version is not used.
    """
    file, probe = file or calibration_file(), probe or MachineProbe()
    guess = Machine.guess(probe)
    try:
        found = _read(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return guess, "guessed; run: pagoda doctor --calibrate"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return guess, f"guessed, as {file} cannot be read ({error}); run: pagoda doctor --calibrate"
    if (found.version, found.cpu, found.threads) != (VERSION, guess.cpu, guess.threads):
        return guess, f"guessed, as {file} is of another machine; run: pagoda doctor --calibrate"
    return found, f"calibrated, {file}"


def _read(data: dict[str, Any]) -> Machine:
    products = {
        name: tuple((int(tokens), float(seconds)) for tokens, seconds in curve)
        for name, curve in data.pop("products").items()
    }
    far = FarCosts(**data.pop("far", {}))
    paces = tuple(float(pace) for pace in data.pop("read_paces", ()))
    machine = Machine(**data, products=products, far=far, read_paces=paces)
    numbers = [*paces, machine.read_bytes_per_second, machine.disk_bytes_per_second, *machine.attend.values()]
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("a rate is not a positive number")
    # A cost may be 0: one that is less than what a measured step varies by.
    if not all(math.isfinite(number) and number >= 0 for number in asdict(far).values()):
        raise ValueError("a cost is not a number from 0")
    return machine
