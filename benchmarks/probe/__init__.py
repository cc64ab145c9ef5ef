"""What this machine can do right now: read bandwidth, a cache line's round trip, the rate of torch's matrix products.

A share of the roofline means nothing without the roofline of that minute: the host of a virtual machine moves its CPUs
between caches, and neighbours come and go. ``Probe`` is cheap enough (about half a second) to run around every
repetition. ``python -m benchmarks.probe`` prints it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("probe.c")
REGISTERS = Path(__file__).with_name("registers.c")
# Eight times the L3 of most machines. One of 480 MiB flatters it by 3 % (33.4 GB/s; 1 GiB is read at 32.5), so that a
# share of it looks smaller.
READ_MIB, READ_PASSES = 256, 9
GEMM_SIZE, GEMM_REPEATS = 2048, 3  # 17 GFLOP: 20 ms at 900 GFLOP/s


class NoProbeError(RuntimeError):
    """The machine cannot be measured; the message says what is missing."""


@dataclass(frozen=True)
class Probe:
    """One look at the machine. GB/s are 1e9 bytes a second; GFLOP/s count a multiply and an add as two."""

    read_gb_s: float
    round_trip_ns: float
    bf16_gflop_s: float
    int8_gop_s: float

    def mean(self, other: Probe) -> Probe:
        """Halfway between the look before and the look after."""
        pairs = zip(self.as_list(), other.as_list(), strict=True)
        return Probe(*((a + b) / 2 for a, b in pairs))

    def as_list(self) -> list[float]:
        return [self.read_gb_s, self.round_trip_ns, self.bf16_gflop_s, self.int8_gop_s]


class Prober:
    """Compiles the C half once and measures on demand with ``threads`` threads.

    Raises NoProbeError where no C compiler is found or it fails.
    """

    def __init__(self, threads: int, cache: Path | None = None) -> None:
        self._threads = threads
        self._binary = _compiled(cache or Path(tempfile.gettempdir()))

    def __call__(self) -> Probe:
        words = subprocess.run(
            [self._binary, str(self._threads), str(READ_MIB), str(READ_PASSES)],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.split()  # fmt: skip
        return Probe(float(words[1]), float(words[3]), *gemm_rates(self._threads))


def gemm_rates(threads: int) -> tuple[float, float]:
    """Best of a few square products by torch: bf16 GFLOP/s, and int8 x int8 -> int32 Gop/s."""
    import torch

    torch.set_num_threads(threads)
    size = (GEMM_SIZE, GEMM_SIZE)
    half = torch.ones(size, dtype=torch.bfloat16)
    byte = torch.ones(size, dtype=torch.int8)
    with torch.inference_mode():
        return _rate(lambda: half @ half), _rate(lambda: torch._int_mm(byte, byte))


def _rate(product: object) -> float:
    assert callable(product)
    product()  # the first call prepares primitives
    best = float("inf")
    for _ in range(GEMM_REPEATS):
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return 2 * GEMM_SIZE**3 / best / 1e9


def register_rates(threads: int, cache: Path | None = None) -> dict[str, float]:
    """G operations a second of ``threads`` cores by each instruction that multiplies, nothing coming from memory: the
    sum of the threads' medians.

    Raises NoProbeError as `Prober`.
    """
    binary = _compiled(cache or Path(tempfile.gettempdir()), REGISTERS, "-Wno-psabi")
    lines = subprocess.run([binary, str(threads)], capture_output=True, text=True, check=True, timeout=120).stdout
    rates: dict[str, float] = {}
    for _, instruction, _, median in map(str.split, lines.splitlines()):
        rates[instruction] = rates.get(instruction, 0.0) + float(median)
    return rates


def _compiled(cache: Path, source: Path = SOURCE, *options: str) -> Path:
    """A source's binary; its name carries the source's hash, so a changed source is compiled again."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    binary = cache / f"pagoda-{source.stem}-{digest}"
    if binary.exists():
        return binary
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoProbeError("no C compiler (cc, gcc, clang) was found; install one or name it in CC")
    cache.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, "-O3", *(options or ["-march=native"]), "-pthread", str(source), "-o", str(fresh)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoProbeError(f"{compiler} failed on {source.name}: {done.stderr.strip().splitlines()[0]}")
    fresh.replace(binary)
    return binary
