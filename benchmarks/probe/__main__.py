"""``python -m benchmarks.probe [--times N]``: one JSON line a look."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from pagoda.budget import MachineProbe

from ..arguments import positive
from . import Prober, register_rates


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--times", type=positive, default=1, help="looks at the machine")
    parser.add_argument("--registers", action="store_true", help="what instructions multiply, nothing from memory")
    parser.add_argument("--threads", type=positive, default=MachineProbe().cpus())
    args = parser.parse_args()
    if args.registers:
        print(json.dumps(register_rates(args.threads)))
        return
    prober = Prober(args.threads)
    for _ in range(args.times):
        print(json.dumps({name: round(value, 1) for name, value in asdict(prober()).items()}), flush=True)


if __name__ == "__main__":
    main()
