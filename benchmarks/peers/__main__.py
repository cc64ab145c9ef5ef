"""Pagoda beside vLLM, OpenVINO GenAI, llama.cpp and transformers on this machine.

    python -m benchmarks.peers run --openvino-python VENV/bin/python --llamacpp-python VENV/bin/python
    python -m benchmarks.peers run --only qwen05b/bf16/b1 --rounds 5 ...   # one cell
    python -m benchmarks.peers run --again pagoda ...                      # after a change to Pagoda
    python -m benchmarks.peers report                                      # tables and drawings from what was measured

``run`` goes on where an earlier one with the same --out stopped; give another --out, or --again, to measure afresh. A
peer whose interpreter is not given is left out.
"""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from ..arguments import folder, interpreter, positive, seconds
from ..machine import describe
from ..page import insert
from ..probe import NoProbeError
from ..without_amx import restart_without_amx
from . import engines
from .checkpoints import ROOT
from .settings import SETTINGS, WEIGHTS
from .shapes import SHAPES
from .summary import OURS, OURS_TOO

OUT = ROOT / "build" / "peers"
RESULTS = Path(__file__).parent / "results"
CONVERTERS = {
    "gguf": "llamacpp",
    "compressed": "vllm",
    "openvino": "openvino",
}  # form -> the engine whose tools make it


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure every cell that is not finished")
    for name in engines.names():
        ours = sys.executable if name in (OURS, OURS_TOO) else None
        run.add_argument(
            f"--{name}-python", metavar="PATH", default=ours, type=interpreter, help=f"interpreter that has {name}"
        )
    run.add_argument(
        "--optimum-python",
        metavar="PATH",
        type=interpreter,
        help="interpreter with optimum-intel (default: --openvino-python)",
    )
    run.add_argument("--models", type=Path, default=OUT / "models", help="where the random-weight models are made")
    run.add_argument("--out", type=Path, default=OUT / f"{datetime.now(UTC):%F}", help="repetitions and logs")
    run.add_argument("--only", nargs="*", default=["*"], metavar="SHAPE/WEIGHTS/SETTING", help="cells, with * and ?")
    run.add_argument("--engines", nargs="*", default=engines.names(), choices=engines.names(), metavar="NAME")
    run.add_argument(
        "--again", nargs="*", default=[], choices=engines.names(), metavar="NAME",
        help="set these engines' earlier repetitions of the chosen cells aside and measure them afresh",
    )  # fmt: skip
    run.add_argument("--rounds", type=positive, default=3, help="clean repetitions of each engine and cell")
    run.add_argument("--threads", type=positive, help="threads of each engine (default: the CPUs that may be used)")
    run.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: rates by processor time, for --threads 1 on a shared machine; give it an --out of its own",
    )  # fmt: skip
    run.add_argument(
        "--without-amx", action="store_true",
        help="let the system refuse AMX tiles to every engine; give it an --out of its own",
    )  # fmt: skip
    run.add_argument("--minutes", type=seconds, default=600, help="stop starting cells after that")
    run.add_argument("--slice-seconds", type=seconds, default=100, help="longest stay behind --measure-gate at once")
    run.add_argument(
        "--load-seconds", type=seconds, default=300, help="an engine that takes longer to load is left out"
    )
    run.add_argument(
        "--measure-gate", default="", metavar="COMMAND", help="runs its argument when the machine is free: 'flock F'"
    )
    run.add_argument("--load-gate", default="", metavar="COMMAND", help="the same for loading and converting models")
    report = commands.add_parser("report", help="the tables, drawings and committed JSON from --out")
    report.add_argument("--out", type=folder, help="a run on this machine (default: take the committed JSON as it is)")
    report.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    report.add_argument("--readme", type=Path, default=ROOT / "README.md")
    report.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the committed JSON, a file for each machine"
    )
    return made


def run(args: argparse.Namespace) -> None:
    if args.without_amx:
        restart_without_amx("benchmarks.peers")
    from pagoda.budget import MachineProbe

    from .driver import Driver, Options
    from .gate import GateLostError
    from .progress import Bar
    from .store import Store

    cells = [
        (shape, weights, setting)
        for shape in SHAPES
        for weights in WEIGHTS
        for setting in SETTINGS
        if any(fnmatchcase(f"{shape}/{weights}/{setting}", pattern) for pattern in args.only)
    ]
    if not cells:
        sys.exit(
            f"--only {' '.join(args.only)} names no cell; accepted: SHAPE/WEIGHTS/SETTING, for example qwen05b/bf16/b1"
        )
    pythons = {name: getattr(args, f"{name}_python") for name in args.engines}
    for name in (name for name, python in pythons.items() if not python):
        print(f"without {name}: give --{name}-python to measure it", file=sys.stderr)
    pythons = {name: python for name, python in pythons.items() if python}
    makers = {form: pythons[engine] for form, engine in CONVERTERS.items() if engine in pythons}
    if args.optimum_python:
        makers["openvino"] = args.optimum_python
    options = Options(
        pythons, makers, args.models, args.out, args.threads or MachineProbe().cpus(), rounds=args.rounds,
        load_s=args.load_seconds, slice_s=args.slice_seconds, total_s=60 * args.minutes,
        measure_gate=args.measure_gate, load_gate=args.load_gate, clock=args.clock,
        masked=tuple(describe().get("masked", ())),
    )  # fmt: skip
    if args.again:
        Store(args.out).set_aside(lambda made: made.engine in args.again and made.cell in cells)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM; the same command goes on"))
    try:
        with Bar() as bar:
            Driver(options, bar.say, bar.progress).run(cells_by_group(cells))
    except (GateLostError, NoProbeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def cells_by_group(cells: list[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    """(shape, weights) -> settings, in order."""
    groups: dict[tuple[str, str], list[str]] = {}
    for shape, weights, setting in cells:
        groups.setdefault((shape, weights), []).append(setting)
    return groups


def report(args: argparse.Namespace) -> None:
    from .plots import draw
    from .report import markdown, short, verdict_tables
    from .store import Store
    from .summary import Summary, newest_whole, read_all, summarise

    if args.out:
        measured = summarise(Store(args.out), describe())
        path = args.results / f"{measured.name}.json"
        (measured.over(Summary.read(path)) if path.exists() else measured).save(path)
    summaries = read_all(args.results)
    insert(args.page, verdict_tables(summaries), "peers-asked")
    insert(args.page, markdown(summaries), "peers")
    insert(args.readme, short(newest_whole(summaries)), "peers")
    for summary in summaries:
        for path in draw(summary, args.page.parent / "img"):
            print(path)


def main(words: list[str] | None = None) -> None:
    args = parser().parse_args(words)
    {"run": run, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
