"""How fast a model loads, against its disk: `python -m benchmarks.loading MODEL`.

Every load is a process of its own that has imported everything before its clock starts, with the checkpoint dropped
from the page cache, and stands between two direct readings of the file from front to back: the disk's rate. `warm`
loads into memory that the same process has just used and given back, `cold` into memory that was free for
`SETTLE_SECONDS`. A virtual machine may give free memory back to its host and get it again page by page, slower than
the disk reads: that rate is measured too, in the same round, by one thread and by two, and how fast the same direct
reads fill memory that was free as long (`into_free_memory`), which is what a cold load can be asked to reach. What
counts is the share of the disk's rate, and how much more than the loaded model the process holds at its peak.
`--memory warm` leaves the slow rounds out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.streaming import disk_rate

LOAD = """
import json, sys, time
import torch
from pagoda.budget import MachineProbe
from pagoda.models.load import load_model
from pagoda.models import families, fallback_check
from pagoda.kernels.memory import empty_bytes
torch.ones(8, 8).to(torch.bfloat16) @ torch.ones(8, 8).to(torch.bfloat16)
before = MachineProbe().rss()
if int(sys.argv[3]):
    memory = empty_bytes((int(sys.argv[3]),), torch.device("cpu"))
    memory[::4096] = 1
    del memory
start = time.perf_counter()
loaded = load_model(sys.argv[1], quantization=sys.argv[2])
seconds = time.perf_counter() - start
grown = MachineProbe().peak_rss() - before
print(json.dumps({"seconds": seconds, "peak": grown, "model": loaded.model.weight_bytes}))
"""

TOUCH = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import torch
from pagoda.kernels.memory import empty_bytes
size, threads = int(sys.argv[1]), int(sys.argv[2])
memory = empty_bytes((size,), torch.device("cpu"))
parts = memory.chunk(threads)
start = time.perf_counter()
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(lambda part: part[::4096].fill_(1), parts))
print(size / (time.perf_counter() - start))
"""
READ = """
import sys, time
from pathlib import Path
import torch
from pagoda.kernels.memory import empty_bytes
from pagoda.weights.direct import CHUNK_BYTES, DirectFile
file = DirectFile(Path(sys.argv[1]))
size = file.stamp.num_bytes // CHUNK_BYTES * CHUNK_BYTES
memory = empty_bytes((size,), torch.device("cpu"))
start = time.perf_counter()
for at in range(0, size, CHUNK_BYTES):
    file.read(at, CHUNK_BYTES, memory[at : at + CHUNK_BYTES], "the benchmark's piece")
print(size / (time.perf_counter() - start))
"""
SETTLE_SECONDS = 8
"""After which free memory is the host's: Linux reports free pages to it every two seconds."""


def drop(files: list[Path]) -> None:
    """Their pages leave the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def load(model: Path, quantization: str, touch_bytes: int) -> dict[str, float]:
    """One load in a fresh process, which has used ``touch_bytes`` before."""
    drop(sorted(model.glob("*.safetensors")))
    command = [sys.executable, "-c", LOAD, str(model), quantization, str(touch_bytes)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _after_a_while(program: str, *arguments: object) -> float:
    time.sleep(SETTLE_SECONDS)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_rate(num_bytes: int, threads: int) -> float:
    """Bytes a second of memory that has been free for a while."""
    return _after_a_while(TOUCH, num_bytes, threads)


def fresh_rate(files: list[Path]) -> float:
    """Bytes a second of direct reads into memory that has been free for a while, the mean of the files."""
    drop(files)
    return statistics.mean(_after_a_while(READ, file) for file in files)


def disk(files: list[Path]) -> float:
    """Bytes a second of direct reads, the mean of the files."""
    drop(files)
    return statistics.mean(disk_rate(file, file.stat().st_size) for file in files)


def measure_warm(model: Path, quantization: str, rounds: int) -> dict[str, object]:
    """Loads into memory that was just used, between readings of the disk."""
    files = sorted(model.glob("*.safetensors"))
    model_bytes = int(load(model, quantization, 0)["model"])
    rates, loads = [disk(files)], list[dict[str, float]]()
    for _ in range(rounds):
        loads.append(load(model, quantization, model_bytes))
        rates.append(disk(files))
    return {"disk_bytes_per_second": rates, **_summary(model, loads, _around(rates))}


def measure_cold(model: Path, quantization: str, rounds: int) -> dict[str, object]:
    """Loads into memory that was free for a while, beside all that can hold them up there."""
    files = sorted(model.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    rates, loads, fresh, memory = [disk(files)], list[dict[str, float]](), list[float](), list[list[float]]()
    for _ in range(rounds):
        fresh.append(fresh_rate(files))
        memory.append([memory_rate(stored, threads) for threads in (1, 2)])
        time.sleep(SETTLE_SECONDS)
        loads.append(load(model, quantization, 0))
        rates.append(disk(files))
    return {
        "disk_bytes_per_second": rates,
        "free_memory_bytes_per_second_by_1_and_2_threads": memory,
        "into_free_memory_bytes_per_second": fresh,
        **_summary(model, loads, _around(rates)),
        "beside_reads_into_free_memory": _summary(model, loads, fresh),
    }


def _around(rates: list[float]) -> list[float]:
    """The mean of the rates before and after each load."""
    return [statistics.mean(pair) for pair in itertools.pairwise(rates)]


def _summary(model: Path, loads: list[dict[str, float]], rates: list[float]) -> dict[str, object]:
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    shares = [stored / one["seconds"] / rate for one, rate in zip(loads, rates, strict=True)]
    return {
        "bytes_per_second": stored / statistics.median(one["seconds"] for one in loads),
        "share": statistics.median(shares),
        "shares": shares,
        "peak_beside_model": max(one["peak"] - one["model"] for one in loads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=("warm", "cold", "both"), default="both")
    args = parser.parse_args()
    found = dict[str, object]()
    for name, run in (("warm", measure_warm), ("cold", measure_cold)):
        if args.memory in (name, "both"):
            found[name] = run(args.model, args.quantization, args.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
