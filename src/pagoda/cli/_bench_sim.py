"""``pagoda bench sim``: scheduling policies on a trace, simulated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from . import _options as opt
from ._output import emit_json

if TYPE_CHECKING:
    from ..bench.sim import Row


def sim(
    trace: Annotated[str, typer.Argument(help="A trace (.csv of Azure, .jsonl of Mooncake), or poisson, or bursty.")],
    policy: Annotated[list[str] | None, typer.Option(help="Scheduling policy; may be given several times.")] = None,
    requests: Annotated[int, typer.Option(help="At most so many requests of the trace.", min=1)] = 1000,
    time_scale: Annotated[float, typer.Option(help="Requests come so many times as fast.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="Prompts and answers are so many times as long.")] = 1.0,
    rate: Annotated[float, typer.Option(help="Requests a second, for poisson and bursty.")] = 4.0,
    tenants: Annotated[int, typer.Option(help="Tenants, for poisson and bursty.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of poisson and bursty.")] = 0,
    device: Annotated[
        str, typer.Option(help="A machine of the catalogue (a100-80g, h100-80g, l4, …), or here.")
    ] = "a100-80g",
    machines: Annotated[Path | None, typer.Option(help="YAML file with more machines, as plan/machines.yaml.")] = None,
    model: Annotated[
        str, typer.Option(help="llama-2-7b, llama-3.1-8b, mistral-7b, or any that pagoda plan takes.")
    ] = "llama-2-7b",
    memory: Annotated[str | None, typer.Option(help="The budget, where the device is here.")] = None,
    quantization: Annotated[str, typer.Option(help="Weight format, where the device is here.")] = "auto",
    page_size: Annotated[
        int | None, typer.Option(help="Tokens of a KV page.", show_default="16, or the trace's blocks", min=1)
    ] = None,
    replicas: Annotated[int, typer.Option(help="Engines side by side.", min=1)] = 1,
    blocks: Annotated[
        int | None, typer.Option(help="KV blocks (pages of tokens) of a replica.", show_default="what fits", min=1)
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences of a step.", min=1)] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens of a step.", min=1)] = 2048,
    slo_ttft: Annotated[float, typer.Option(help="Seconds to the first token that are promised.")] = 2.0,
    slo_tpot: Annotated[float, typer.Option(help="Seconds a token that are promised.")] = 0.1,
    out: Annotated[Path | None, typer.Option(help="Folder for sim.json, sim.md, ttft.svg and e2e.svg.")] = None,
    json: opt.Json = False,
) -> None:
    """Run the real scheduler and page pool under a false clock: what would each policy do to this traffic?

    Step times of the device here are those of pagoda plan (pagoda doctor --calibrate [--model M]); of others they come
    from published peaks and stated shares of them.
    """
    from ..bench import sim as bench
    from ..bench.latency import Promise
    from ..bench.trace_files import arrivals_of
    from ..plan import targets
    from ..plan.catalogue import pick_machine
    from ..schedule.scheduler import Limits

    arrivals = arrivals_of(trace, requests, rate=rate, seed=seed, tenants=tenants, time=time_scale, length=length_scale)
    policies = policy or ["fcfs", "sjf", "past_future"]

    def told(name: str, number: int) -> None:
        if sys.stderr.isatty() and (number % 50 == 0 or number == len(arrivals)):
            end = "\n" if number == len(arrivals) else ""
            print(f"\r{name}: {number} of {len(arrivals)} requests arrived", end=end, file=sys.stderr, flush=True)

    page_size = page_size or bench.page_size_of(arrivals)
    limits = Limits(max_num_batched_tokens, max_num_seqs)
    if device == targets.HERE:
        target = targets.here(
            model, limits, memory=memory, quantization=quantization, page_size=page_size, blocks=blocks
        )
    elif memory is not None or quantization != "auto":
        raise ConfigError(f"--memory and --quantization are of this machine; with --device {device} leave them out")
    else:
        machine = pick_machine(device, machines)
        target = targets.rented(model, machine, limits, page_size=page_size, blocks=blocks)
    promise = Promise(slo_ttft, slo_tpot)
    rows = bench.run(arrivals, policies, target.setting, promise=promise, replicas=replicas, progress=told)
    if out is not None:
        _write(out, rows)
    if json:
        emit_json({"steps": target.reason, **bench.as_dict(rows)})
    else:
        print(f"{bench.markdown(rows)}\n\nstep times: {target.reason}")


def _write(folder: Path, rows: list[Row]) -> None:
    from json import dumps

    from ..bench.latency import e2e, ttft
    from ..bench.load_plots import cumulative
    from ..bench.sim import as_dict, markdown

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sim.json").write_text(dumps(as_dict(rows), indent=1) + "\n", encoding="utf-8")
    (folder / "sim.md").write_text(markdown(rows) + "\n", encoding="utf-8")
    for name, measure in (("ttft", ttft), ("e2e", e2e)):
        series = {row.scheduling: [measure(r) for r in row.run.served if r.token_at] for row in rows}
        (folder / f"{name}.svg").write_text(cumulative(f"requests with {name} up to x", series), encoding="utf-8")
