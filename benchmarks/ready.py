"""How soon a model answers, and what it holds beside weights and KV: ``python -m benchmarks.ready MODEL``.

Every start is a process of its own, the checkpoint in the page cache: from the interpreter to the first token, divided
into imports, weights and the rest, with the processor time that the system itself took (a fresh page costs it more than
the copying) and the pages that it handed out. Then ``--batch`` prompts decode together, and the process's peak is
divided into weights, KV and what else it took.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from .arguments import positive

MIB = 2**20
NEW = 33


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--quantization", nargs="+", default=["auto"], help="weights, in turn")
    parser.add_argument("--starts", type=positive, default=3)
    parser.add_argument("--batch", type=positive, default=32, help="prompts that decode together once it is ready")
    parser.add_argument("--prompt", type=positive, default=128, help="tokens of each")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.started is not None:
        print(json.dumps(start(args)))
        return
    for file in Path(args.model).rglob("*.safetensors"):
        file.read_bytes()
    found: dict[str, list[dict[str, float]]] = {quantization: [] for quantization in args.quantization}
    for _ in range(args.starts):
        for quantization, starts in found.items():
            starts.append(in_a_process(args, quantization))
    for quantization, starts in found.items():
        show(quantization, starts)


def in_a_process(args: argparse.Namespace, quantization: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ready", args.model, "--quantization", quantization]
    command += ["--batch", str(args.batch), "--prompt", str(args.prompt), "--memory", args.memory]
    run = subprocess.run([*command, "--started", str(time.time())], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def start(args: argparse.Namespace) -> dict[str, float]:
    """What a start took, in this process: by name, in the order in which it is shown."""
    import torch  # noqa: F401 - the most of what is imported

    from pagoda import SamplingParams
    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig
    from pagoda.engine.intake import Intake

    imported = time.time()
    built = build(
        EngineConfig(
            args.model, memory=args.memory, quantization=args.quantization[0], max_num_seqs=args.batch,
            max_model_len=args.prompt + NEW, enable_prefix_caching=False,
        )
    )  # fmt: skip
    intake, engine = Intake(built), built.engine
    rng, vocab = random.Random(0), built.loaded.shape.vocab_size

    def decode(count: int, new: int) -> int:
        """The most bytes of KV that ``count`` prompts held."""
        params, kv = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True), 0
        for index in range(count):
            prompt = [rng.randrange(5, vocab - 5) for _ in range(args.prompt)]
            engine.add(intake.request(f"{count}-{index}", prompt, params, stream=True))
        while engine.has_work:
            engine.step()
            kv = max(kv, built.stats()["memory"]["accounts"]["kv"]["leased_bytes"])
        return kv

    decode(1, 1)
    first = time.time()
    system, faults = resources()
    at_start = peak_rss()
    kv = decode(args.batch, NEW)
    weights = built.stats()["memory"]["accounts"]["weights"]["leased_bytes"]
    seconds = built.startup
    peak = peak_rss()
    return {
        "ready, s": first - args.started, "imports, s": imported - args.started, "weights, s": seconds["weights"],
        "rest, s": first - imported - seconds["weights"], "in the system, s": system, "pages handed out": faults,
        "peak when ready, MiB": at_start / MIB, f"peak, {args.batch} sequences, MiB": peak / MIB,
        "weights, MiB": weights / MIB, "KV, MiB": kv / MIB, "beside both, MiB": (peak - weights - kv) / MIB,
    }  # fmt: skip


def resources() -> tuple[float, int]:
    """Processor seconds that the system took for this process, and its minor faults."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_stime, usage.ru_minflt


def peak_rss() -> int:
    from pagoda.budget import MachineProbe

    return MachineProbe().peak_rss()


def show(quantization: str, starts: list[dict[str, float]]) -> None:
    print(f"{quantization}, {len(starts)} starts: median (least to most)")
    for name in starts[0]:
        each = sorted(one[name] for one in starts)
        digits = 2 if name.endswith(", s") else 0
        print(f"{median(each):10.{digits}f} ({each[0]:.{digits}f} to {each[-1]:.{digits}f})  {name}")


if __name__ == "__main__":
    main()
