"""What a decode step allocates: ``python -m benchmarks.allocations MODEL --batch 8``.

Counts calls of malloc, calloc, realloc, operator new and their kin, by size, by a library that is loaded before
everything else, and apart those that Pagoda's own C++ makes;
Python's own small objects, which mostly lie in its arenas, as objects that a step leaves behind; and minor faults,
which memory that is given back to the system and fetched again would cause. Linux with glibc and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from ..arguments import positive
from ..step import add_engine_options, warm_up

SOURCE = Path(__file__).with_name("count.c")
NAMES = ("up to 512 bytes", "up to 64 KiB", "larger", "bytes of all", "by the C++ kernels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--prompt", type=positive, default=128)
    parser.add_argument("--steps", type=positive, default=64, help="decode steps that are counted")
    add_engine_options(parser)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.counted:
        count(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "count.so"
        subprocess.run(
            [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True
        )
        command = [sys.executable, "-m", "benchmarks.allocations", *sys.argv[1:], "--counted"]
        raise SystemExit(subprocess.run(command, env=os.environ | {"LD_PRELOAD": str(library)}, check=False).returncode)


def count(args: argparse.Namespace) -> None:
    from pagoda import SamplingParams
    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig
    from pagoda.engine.intake import Intake

    built = build(
        EngineConfig(
            args.model, memory=args.memory, num_threads=args.threads, max_num_seqs=args.batch,
            quantization=args.quantization, kv_cache_dtype=args.kv_cache_dtype,
            max_model_len=args.prompt + args.steps + 64, enable_prefix_caching=False,
            max_num_batched_tokens=max(2048, args.batch),
        )
    )  # fmt: skip
    engine, intake, rng = built.engine, Intake(built), random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=args.steps + 48, ignore_eos=True)
    for index in range(args.batch):
        prompt = [rng.randrange(5, built.loaded.shape.vocab_size - 5) for _ in range(args.prompt)]
        engine.add(intake.request(f"r{index}", prompt, params, stream=True))
    warm_up(built, 8)
    counter = ctypes.CDLL(None)
    counter.pagoda_watch(*(ctypes.c_uint64(address) for address in kernels_code()))
    seen = [looked(counter)]
    for _ in range(args.steps):
        engine.step()
        seen.append(looked(counter))
    steps = [[b - a for a, b in zip(one, two, strict=True)] for one, two in pairwise(seen)]
    print(f"a decode step of {args.batch}: median, most of {args.steps}")
    for name, each in zip((*NAMES, "minor faults", "objects left behind"), zip(*steps, strict=True), strict=True):
        print(f"{median(each):12.0f} {max(each):12.0f}  {name}")
    built.close()


def kernels_code() -> tuple[int, int]:
    """Where the extension's instructions lie."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    code = [line.split()[0].split("-") for line in maps if "/_cpu." in line and line.split()[1][2] == "x"]
    return int(code[0][0], 16), int(code[-1][1], 16)


def looked(counter: ctypes.CDLL) -> list[int]:
    """All counters now; looking itself is one list and an array."""
    counts = (ctypes.c_uint64 * len(NAMES))()
    counter.pagoda_allocations(counts)
    return [*counts, resource.getrusage(resource.RUSAGE_SELF).ru_minflt, sys.getallocatedblocks()]


if __name__ == "__main__":
    main()
