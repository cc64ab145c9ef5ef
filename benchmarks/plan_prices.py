"""Measures what the planner charges for lossy methods, and writes ``src/pagoda/plan/measured/MODEL.json``.

    python -m benchmarks.plan_prices lantern
    python -m benchmarks.plan_prices lantern --weights "int5" "int5(embed='same')"     these alone, added to the file

Weight formats, ways to store KV and KV policies on the same cases, teacher-forced through the engine, each beside the
exact model: KL divergence in nats a token, the mean over tasks of very different kinds (running text, and facts that
have to be found again far back), so that a method that reads well but forgets is not cheap.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pagoda.bench.forced import Answer, ForcedEngine
from pagoda.bench.quality.tasks import TASKS
from pagoda.bench.quality.tasks.base import World
from pagoda.kv.codecs import CODECS
from pagoda.plan.prices import FOLDER

TASK_NAMES = ("agreement", "recall", "multi_key", "copying")
FORMATS = (
    "bf16", "ternary", "int8", "w8a8", "int5", "int5(embed='same')", "int4(group=32)", "int4(group=32, embed='same')",
    "int4", "int4(embed='same')", "w4a8", "nf4", "fp8",
)  # fmt: skip
POLICIES = (
    "snapkv(budget=0.5)", "snapkv(budget=0.25)", "snapkv(budget=0.25)+ada", "streaming_llm(budget=0.5)",
    "streaming_llm(budget=0.25)", "h2o(budget=0.25)", "scope(budget=0.25)",
)  # fmt: skip
SELECTIONS = ("quest(pages=0.25)",)
"""What plans choose pages of offloaded KV by."""
USELESS = 3.0
"""Nats a token from which on a format is not offered (ternary in a model not trained with it: 5 to 8)."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_prices", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--length", type=int, default=400)
    parser.add_argument("--weights", nargs="*", help="measure these formats only, and add them to what is there")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    file = args.out / f"{Path(args.model).name}.json"
    found = (
        add_weights(args.model, file, args.weights) if args.weights else measure(args.model, args.cases, args.length)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    found["weights"] = {name: loss for name, loss in found["weights"].items() if loss < USELESS}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def add_weights(model: str, file: Path, formats: list[str]) -> dict[str, Any]:
    """What ``file`` holds, with these formats measured on the cases that it says."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    with ForcedEngine(model, quantization="none") as engine:
        world = World.make(engine.built.loaded.tokenizer, min(found["length"], engine.engine.max_model_len - 8))
        cases = cases_of(world, found["cases"])
        exact = answers(engine, cases, "exact")
    found["weights"] |= {name: alone(model, cases, exact, quantization=name) for name in formats}
    return found


def measure(model: str, count: int, length: int) -> dict[str, Any]:
    """Everything that `pagoda.plan.prices` reads."""
    with ForcedEngine(model, quantization="none") as engine:
        world = World.make(engine.built.loaded.tokenizer, min(length, engine.engine.max_model_len - 8))
        cases = cases_of(world, count)
        exact = answers(engine, cases, "exact")
        policies = {}
        for kv in (*POLICIES, *SELECTIONS):
            print(kv, file=sys.stderr, flush=True)
            before, started = engine.engine.counters.policy_seconds, time.perf_counter()
            loss = divergence(exact, answers(engine, cases, kv))
            spent = time.perf_counter() - started
            policies[kv] = {"kl": loss, "deciding": (engine.engine.counters.policy_seconds - before) / spent}
        loaded = engine.built.loaded
        num_params, family = loaded.shape.num_params, loaded.config["model_type"]
    return {
        "model": Path(model).name, "family": family, "num_params": num_params,
        "cases": count, "length": length, "tasks": list(cases),
        "weights": {name: alone(model, cases, exact, quantization=name) for name in FORMATS},
        "kv_dtypes": {
            name: alone(model, cases, exact, quantization="none", kv_cache_dtype=name) for name in CODECS.names()
        },
        "policies": {kv: policies[kv] for kv in POLICIES},
        "selections": {kv: policies[kv] for kv in SELECTIONS},
    }  # fmt: skip


def cases_of(world: World, count: int) -> dict[str, Any]:
    """Those of every task that the model's context has room for."""
    found = {}
    for name in TASK_NAMES:
        task: Any = TASKS.get(name)
        try:
            found[name] = task().cases(world, count)
        except ValueError as error:
            print(f"left out: {name} ({error})", file=sys.stderr)
    return found


def answers(engine: ForcedEngine, cases: dict[str, Any], kv: str) -> dict[str, list[Answer]]:
    return {name: list(engine.run(some, kv)) for name, some in cases.items()}


def alone(model: str, cases: dict[str, Any], exact: dict[str, list[Answer]], **options: str) -> float:
    """The loss of an engine with these options."""
    print(options, file=sys.stderr, flush=True)
    with ForcedEngine(model, **options) as engine:
        return divergence(exact, answers(engine, cases, "exact"))


def divergence(exact: dict[str, list[Answer]], other: dict[str, list[Answer]]) -> float:
    """Mean over tasks of the mean over scored places of KL(exact || other), nats."""
    per_task = []
    for name, truths in exact.items():
        total, places = 0.0, 0
        for truth, answer in zip(truths, other[name], strict=True):
            p, q = truth.logits.log_softmax(-1), answer.logits.log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
            places += len(truth.logits)
        per_task.append(total / max(1, places))
    return max(0.0, round(sum(per_task) / len(per_task), 5))


if __name__ == "__main__":
    main()
