"""How fast a model loads, against its disk: `python -m benchmarks.loading MODEL`.

Every round drops the checkpoint from the page cache, reads it directly from front to back (the disk's rate), drops it
again, and loads the model in a process of its own that has imported everything before its clock starts. What counts is
the share of the disk's rate, and how much more than the loaded model the process holds at its peak. A virtual machine
may get its memory page by page from a host that is slower at it than the disk at reading, so every round also touches
as many bytes as the model has, in a process of its own, and gives that rate: the second limit of a load.
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
torch.ones(8, 8).to(torch.bfloat16) @ torch.ones(8, 8).to(torch.bfloat16)
before = MachineProbe().peak_rss()
start = time.perf_counter()
loaded = load_model(sys.argv[1], quantization=sys.argv[2])
seconds = time.perf_counter() - start
grown = MachineProbe().peak_rss() - before
print(json.dumps({"seconds": seconds, "peak": grown, "model": loaded.model.weight_bytes}))
"""

TOUCH = """
import sys, time
from pagoda.kernels.memory import empty_bytes
import torch
num_bytes = int(sys.argv[1])
start = time.perf_counter()
empty_bytes((num_bytes,), torch.device("cpu"))[::4096] = 1
print(num_bytes / (time.perf_counter() - start))
"""


def touch_rate(num_bytes: int) -> float:
    """Bytes a second of memory that a new process uses for the first time, on one core."""
    done = subprocess.run([sys.executable, "-c", TOUCH, str(num_bytes)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def drop(files: list[Path]) -> None:
    """Their pages leave the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(model: Path, quantization: str, rounds: int) -> dict[str, object]:
    files = sorted(model.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    found = []
    for _ in range(rounds):
        drop(files)
        rate = statistics.mean(disk_rate(file, file.stat().st_size) for file in files)
        drop(files)
        touched = touch_rate(stored)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(model), quantization], check=True, capture_output=True, text=True
        )
        one = json.loads(done.stdout)
        rates = {"disk_bytes_per_second": rate, "touched_bytes_per_second": touched}
        found.append(one | rates | {"share": stored / one["seconds"] / rate})
    return {
        "stored_bytes": stored,
        "share": statistics.median(one["share"] for one in found),
        "bytes_per_second": stored / statistics.median(one["seconds"] for one in found),
        "disk_bytes_per_second": statistics.median(one["disk_bytes_per_second"] for one in found),
        "peak_beside_model": max(one["peak"] - one["model"] for one in found),
        "rounds": found,
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
