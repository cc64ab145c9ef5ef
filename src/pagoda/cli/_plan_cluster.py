"""``pagoda plan cluster``: machines for traffic and a promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from . import _options as opt
from ._output import emit_json, print_table
from ._progress import counter

if TYPE_CHECKING:
    from ..plan.capacity import Outcome

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def cluster(
    trace: Annotated[str, typer.Option(help="A trace (.csv of Azure, .jsonl of Mooncake), or poisson, or bursty.")],
    model: Annotated[str, typer.Option(help="llama-2-7b, llama-3.1-8b, mistral-7b, or any that pagoda plan takes.")],
    slo_ttft: Annotated[float, typer.Option(help="Seconds to the first token that are promised.")] = 2.0,
    slo_tpot: Annotated[float, typer.Option(help="Seconds a token that are promised.")] = 0.1,
    attainment: Annotated[float, typer.Option(help="Share of the requests that must get that.")] = 0.95,
    machine: Annotated[
        list[str] | None, typer.Option(help="Kind of machine; may be given several times.", show_default="all that fit")
    ] = None,
    machines: Annotated[Path | None, typer.Option(help="YAML file with more machines, as plan/machines.yaml.")] = None,
    divide: Annotated[
        str | None, typer.Option(help="Also divide the machines of this kind between prompts and answers.")
    ] = None,
    num_machines: Annotated[
        int | None, typer.Option(help="How many --divide has.", show_default="as many as that kind alone needs", min=2)
    ] = None,
    requests: Annotated[int, typer.Option(help="At most so many requests of the trace.", min=2)] = 1000,
    time_scale: Annotated[float, typer.Option(help="Requests come so many times as fast.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="Prompts and answers are so many times as long.")] = 1.0,
    rate: Annotated[float, typer.Option(help="Requests a second, for poisson and bursty.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of poisson and bursty.")] = 0,
    policy: Annotated[str, typer.Option(help="Scheduling policy of every machine.")] = "fcfs",
    max_num_seqs: Annotated[int, typer.Option(help="Sequences of a step.", min=1)] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens of a step.", min=1)] = 512,
    json: opt.Json = False,
) -> None:
    """Which machines, and how many, serve a trace within a promise for the least money?

    An integer program over sizes of requests and kinds of machines proposes, a simulation of the trace decides. Step
    times come from published peaks and stated shares of them.
    """
    from ..bench.sim import jobs, page_size_of
    from ..bench.trace_files import arrivals_of
    from ..plan import capacity
    from ..plan.catalogue import machine_types
    from ..plan.fleet import Slo
    from ..schedule.scheduler import Limits

    slo, known = Slo(slo_ttft, slo_tpot, attainment), machine_types(machines)
    limits = Limits(max_num_batched_tokens, max_num_seqs)
    arrivals = arrivals_of(trace, requests, rate=rate, seed=seed, time=time_scale, length=length_scale)
    use_prefix = any(a.blocks for a in arrivals)
    asked = [*(machine or known), *([divide] if divide else [])]
    candidates, left_out = capacity.candidates(
        model,
        known,
        list(dict.fromkeys(asked)),
        limits,
        policy,
        page_size=page_size_of(arrivals),
        use_prefix=use_prefix,
        strict=machine is not None,
    )
    todo = list(jobs(arrivals))
    with counter(len(todo)) as told:
        found = capacity.fleets({n: c for n, c in candidates.items() if n in (machine or known)}, todo, slo, told)
        divided: list[Outcome] = []
        if divide is not None:
            if divide not in candidates:
                raise ConfigError(f"{divide}: {left_out[divide]}")
            num = num_machines or max(2, capacity.needed(divide, candidates, todo, slo, told))
            divided = list(capacity.divisions(known[divide], candidates[divide], num, todo, slo, told))
    result: dict[str, Any] = {
        "model": model, "requests": len(todo), "slo": {"ttft": slo.ttft, "tpot": slo.tpot, "attainment": attainment},
        "fleets": [one.as_dict() for one in found], "divided": [one.as_dict() for one in divided],
        "left_out": left_out,
    }  # fmt: skip
    emit_json(result) if json else _print(found, divided, left_out)


def _print(found: list[Outcome], divided: list[Outcome], left_out: dict[str, str]) -> None:
    columns = ["fleet", ">$/h", ">kept", ">TTFT p50", ">p99", ">a token p50", ">p99", ">good/s", ">busy"]
    print_table("Fleets, the cheapest first", columns, [_row(one) for one in found])
    if divided:
        print_table("The same machines divided", ["how", *columns[1:]], [_row(one, one.name) for one in divided])
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")


def _row(one: Outcome, name: str = "") -> list[str]:
    what = name or " + ".join(f"{num} {kind}" for kind, num in one.machines.items())
    times = [f"{one.ttft[p]:.2f} s" for p in ("p50", "p99")]
    times += [f"{1000 * one.tpot[p]:.0f} ms" if one.tpot else "-" for p in ("p50", "p99")]
    return [
        what, f"{one.dollars_per_hour:.2f}", f"{one.attained:.1%}", *times, f"{one.goodput_per_second:.2f}",
        f"{one.busy_share:.0%}",
    ]  # fmt: skip
