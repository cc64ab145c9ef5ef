"""Measures what ``plan.machine.Machine`` holds: the rates of our own kernels on this machine, in about a minute.

Products run over matrices that together are larger than the caches, as a model's are; everything is the median of
several rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..budget.probe import MachineProbe
from ..core.types import DTYPE_BYTES, KVFormat
from ..core.units import parse_bytes
from ..kv.codecs import CODECS
from ..kv.codecs.base import with_dtype
from ..kv.manager import KVManager
from ..kv.offload.tier_file import SPAN, TierFile
from ..kv.pages import PagePool
from ..kv.storage import PageStorage
from ..kv.view import StepView
from ..plan.machine import Curve, Machine, measured_formats
from ..plan.steps import at_pace
from ..weights.filling import pack_matrix
from ..weights.quantization import parse_format
from .machine_step import far_costs, step_costs
from .pace import Pace, paces, usual

TOKENS = (1, 2, 4, 8, 16, 32, 128, 512)
ROWS, COLS, NUM_MATRICES = 4096, 2048, 12
"""As a layer of a 1B model has; 12 of them in bfloat16 are 200 MB, and in 4 bits still 50 MB."""
DISK_BYTES = 128 << 20


def measure(progress: Callable[[str], None] = lambda _: None, probe: MachineProbe | None = None) -> Machine:
    """About a minute on two cores; ``progress`` is told what comes next."""
    probe = probe or MachineProbe()
    torch.set_num_threads(probe.cpus())
    pace, points = Pace(), dict[str, list[Point]]()
    for name in measured_formats():
        progress(f"products, {name}")
        points[name] = product_points(name, pace)
    progress("attention")
    attend, attend_prompt = attention_rates()
    progress("memory and disk")
    disk = disk_rate()
    progress("steps")
    step, layer, row, sample = step_costs()
    progress("KV in a lower tier")
    read, read_byte = cold_reads()
    far = replace(far_costs(), read=read, read_byte=read_byte, copy=copy_seconds())
    pace.look()
    rate, both = usual(pace.seen), paces(pace.seen)
    products = {name: curve_at_pace(name, found, rate) for name, found in points.items()}
    return Machine(
        cpu=probe.cpu_model(), threads=probe.cpus(), runtime_bytes=runtime_bytes(), read_bytes_per_second=rate,
        disk_bytes_per_second=disk, products=products, attend=attend, attend_prompt=attend_prompt, step=step,
        layer=layer, row=row, sample=sample, far=far, measured=True, read_paces=both if len(both) > 1 else (),
        cache_bytes=cache_bytes(),
    )  # fmt: skip


def median_seconds(work: Callable[[], object], *, rounds: int = 5, least: float = 0.02) -> float:
    """Seconds of one call: the median of rounds that each last at least ``least``."""
    work()
    started = time.perf_counter()
    work()
    once = max(time.perf_counter() - started, 1e-7)
    calls = max(1, int(least / once))
    if once > 0.25:
        rounds = 2
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)


Point = tuple[int, float, float]
"""Tokens, seconds a weight, and bytes a second that memory gave meanwhile."""


@torch.inference_mode()
def product_points(name: str, pace: Pace, sizes: tuple[int, ...] = TOKENS) -> list[Point]:
    """Of one format. Formats without a kernel are slow at every size: two tell all."""
    dtype = torch.float32 if name in ("fp32", "none.float32") else torch.bfloat16
    multiply, slow = _matrices(name, dtype)
    found, before = list[Point](), pace.look()
    for tokens in (1, 64) if slow else sizes:
        x = torch.randn(tokens, COLS).to(dtype)
        count = 1 if slow or tokens > 32 else NUM_MATRICES
        at = iter(range(1 << 60))

        def work(x: torch.Tensor = x, count: int = count, at: object = at) -> None:
            for _ in range(count):
                multiply(next(at) % NUM_MATRICES, x)  # type: ignore[call-overload]

        seconds, after = median_seconds(work) / (count * ROWS * COLS), pace.look()
        found.append((tokens, seconds, (before + after) / 2))
        before = after
    return found


def curve_at_pace(name: str, points: Sequence[Point], rate: float) -> Curve:
    """What the products would take at that pace of memory: each weight is read once."""
    plain = name.startswith("none.")
    size = float(DTYPE_BYTES[name[5:]]) if plain else parse_format(name).num_bytes(ROWS, COLS) / (ROWS * COLS)
    return tuple((tokens, at_pace(seconds, size, was, rate)) for tokens, seconds, was in points)


def _matrices(name: str, dtype: torch.dtype) -> tuple[Callable[[int, torch.Tensor], torch.Tensor], bool]:
    """``multiply(which, x)`` over a ring of matrices in that format, and whether the format has no kernel."""
    weight = torch.randn(ROWS, COLS) * 0.02
    if name.startswith("none."):
        plain = [weight.to(dtype).clone() for _ in range(NUM_MATRICES)]
        return (lambda at, x: torch.nn.functional.linear(x, plain[at])), False
    found = parse_format(name)
    slow = not found.kernel
    packed = [pack_matrix(found, weight.to(dtype), dtype) for _ in range(1 if slow else NUM_MATRICES)]
    return (lambda at, x: packed[at % len(packed)].linear(x)), slow


HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT, CHUNK = 32, 8, 64, 4, 2048, 256


@torch.inference_mode()
def attention_rates() -> tuple[dict[str, float], float]:
    """Seconds of one multiply-add of decode attention by the way KV is stored, and of a prompt's chunk (KV plain)."""
    decode = {name: _attend_seconds(name, 1) for name in ("auto", *CODECS.names())}
    return decode, _attend_seconds("auto", CHUNK)


def _attend_seconds(kv_dtype: str, num_tokens: int) -> float:
    """Per slot, query, query head and element, over ``CONTEXT`` slots before the tokens."""
    fmt = with_dtype(KVFormat(LAYERS, KV_HEADS, HEAD_DIM, HEAD_DIM, 16, "bfloat16"), kv_dtype)
    blocks = fmt.blocks_for(CONTEXT + num_tokens)
    storage, manager = PageStorage(fmt, blocks), KVManager(fmt, PagePool(fmt, blocks), None)
    try:
        storage.pages.zero_()
        manager.admit(1, [0] * (CONTEXT + num_tokens))
        assert manager.reserve(1, CONTEXT)
        manager.commit(1, [0] * CONTEXT)
        assert manager.reserve(1, num_tokens)
        view = StepView(storage, [manager.table(1)], [num_tokens])
        q = torch.randn(num_tokens, HEADS, HEAD_DIM).bfloat16()
        k = torch.randn(num_tokens, KV_HEADS, HEAD_DIM).bfloat16()

        def work() -> None:
            for layer in range(LAYERS):
                view.attend(layer, q, k, k, scale=HEAD_DIM**-0.5)

        seen = num_tokens * (CONTEXT + num_tokens / 2)
        return median_seconds(work) / (LAYERS * seen * HEADS * 2 * HEAD_DIM)
    finally:
        storage.close()


def cache_bytes() -> int:
    """Of the last cache, as the system says; 0 where it does not."""
    sizes = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((parse_bytes(f"{size}iB") for size in sizes), default=0)


def disk_rate(num_bytes: int = DISK_BYTES) -> float:
    """Bytes a second of a file that is not in the page cache, where the system lets us drop it; else of one that is."""
    with tempfile.NamedTemporaryFile() as file:
        block = os.urandom(1 << 20)
        for _ in range(num_bytes >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with open(file.name, "rb", buffering=0) as reader:
            started = time.perf_counter()
            while reader.read(1 << 22):
                pass
            return num_bytes / (time.perf_counter() - started)


def cold_reads(num_pages: int = 200, num_runs: int = 60) -> tuple[float, float]:
    """Seconds of a read from a tier's file that is not in the page cache, and of each byte of it: from single pages and
    from runs as steps read them, anywhere in the file.
    """
    fmt = KVFormat(LAYERS, KV_HEADS, HEAD_DIM, HEAD_DIM, 16, "bfloat16")
    run, spans = SPAN * fmt.page_bytes, 9  # as many places as are read, each once
    places = np.arange(spans * fmt.pages_per_block) * run
    with tempfile.TemporaryDirectory() as folder:
        tier = TierFile(fmt, spans * SPAN, Path(folder))
        try:
            memory = torch.randint(0, 256, (run,), dtype=torch.uint8)

            def move(at: np.ndarray, size: int, *, writes: bool = False) -> float:
                started = time.perf_counter()
                tier.move(at, np.full(len(at), size), np.full(len(at), memory.data_ptr()), writes=writes)
                return (time.perf_counter() - started) / len(at)

            move(places, run, writes=True)
            order = np.random.default_rng(0).permutation(places)
            tier.drop_cached()
            pages = move(order[:num_pages] + fmt.page_bytes * (np.arange(num_pages) % SPAN), fmt.page_bytes)
            runs = move(order[-num_runs:], run)
        finally:
            tier.close()
    each = max(0.0, runs - pages) / (run - fmt.page_bytes)
    return max(0.0, pages - each * fmt.page_bytes), each


def copy_seconds() -> float:
    """A core's, for a byte that comes from a lower tier in memory in runs of 64 pages: the median of several rounds."""
    fmt = KVFormat(LAYERS, KV_HEADS, HEAD_DIM, HEAD_DIM, 16, "bfloat16")
    tier, num = TierFile(fmt, 4 * SPAN, None), 4 * fmt.pages_per_block
    try:
        window = torch.ones(num, SPAN * fmt.page_bytes, dtype=torch.uint8)
        places = np.arange(num) * window.shape[1]
        sizes, memory = np.full(num, window.shape[1]), window.data_ptr() + places
        tier.move(places, sizes, memory, writes=True)
        times = list[float]()
        for _ in range(5):
            started = time.thread_time()
            tier.move(places, sizes, memory, writes=False)
            times.append((time.thread_time() - started) / window.numel())
        return statistics.median(times)
    finally:
        tier.close()


def runtime_bytes() -> int:
    """RSS of a fresh process that has imported what ``pagoda serve`` imports before it loads a model."""
    code = (
        "from pagoda.server import logs, traces, serving; from pagoda.engine import async_llm;"
        "from pagoda.budget import MachineProbe; import torch; torch.set_num_threads(2); print(MachineProbe().rss())"
    )
    root = str(Path(__file__).resolve().parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return int(done.stdout)
