"""``python -m benchmarks.probe [--times N]``: one JSON line a look."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from pagoda.budget import MachineProbe

from . import Prober


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="looks at the machine")
    parser.add_argument("--threads", type=int, default=MachineProbe().cpus())
    args = parser.parse_args()
    prober = Prober(args.threads)
    for _ in range(args.times):
        print(json.dumps({name: round(value, 1) for name, value in asdict(prober()).items()}), flush=True)


if __name__ == "__main__":
    main()
