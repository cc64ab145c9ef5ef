"""How fast a model loads, against its disk: `python -m benchmarks.loading MODEL`.

Every round drops the checkpoint from the page cache, reads it directly from front to back (the disk's rate), drops it
again, and loads the model in a process of its own that has imported everything before its clock starts; then once more
in a process that has just used as much memory and given it back. A virtual machine may get its memory page by page
from a host that is slower at it than the disk at reading: the first load shows that as well, the second (`warm`) the
disk alone. What counts is the share of the disk's rate, and how much more than the loaded model the process holds at
its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
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
before, touched = MachineProbe().rss(), 0.0
if int(sys.argv[3]):
    start = time.perf_counter()
    memory = empty_bytes((int(sys.argv[3]),), torch.device("cpu"))
    memory[::4096] = 1
    touched = memory.nbytes / (time.perf_counter() - start)
    del memory
start = time.perf_counter()
loaded = load_model(sys.argv[1], quantization=sys.argv[2])
seconds = time.perf_counter() - start
grown = MachineProbe().peak_rss() - before
print(json.dumps({"seconds": seconds, "peak": grown, "touched": touched, "model": loaded.model.weight_bytes}))
"""


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


def measure(model: Path, quantization: str, rounds: int) -> dict[str, object]:
    files = sorted(model.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    rates, cold, warm = list[float](), list[dict[str, float]](), list[dict[str, float]]()
    for _ in range(rounds):
        drop(files)
        rates.append(statistics.mean(disk_rate(file, file.stat().st_size) for file in files))
        cold.append(load(model, quantization, 0))
        warm.append(load(model, quantization, int(cold[-1]["model"])))
    return {
        "stored_bytes": stored,
        "disk_bytes_per_second": rates,
        "new_memory_bytes_per_second": [one["touched"] for one in warm],
        "cold": _summary(stored, rates, cold),
        "warm": _summary(stored, rates, warm),
        "peak_beside_model": max(one["peak"] - one["model"] for one in cold),
    }


def _summary(stored: int, rates: list[float], loads: list[dict[str, float]]) -> dict[str, object]:
    shares = [stored / one["seconds"] / rate for one, rate in zip(loads, rates, strict=True)]
    seconds = [one["seconds"] for one in loads]
    return {
        "bytes_per_second": stored / statistics.median(seconds),
        "share": statistics.median(shares),
        "shares": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(measure(args.model, args.quantization, args.rounds), indent=1))


if __name__ == "__main__":
    main()
