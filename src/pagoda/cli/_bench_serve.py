"""``pagoda bench serve``: load on a running server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as opt
from ._output import emit_json, print_table


def serve(
    url: Annotated[str, typer.Argument(help="Server with OpenAI's API, as http://HOST:PORT.")],
    trace: Annotated[
        str, typer.Option(help="A trace (.csv of Azure, .jsonl of Mooncake), or poisson, or bursty.")
    ] = "poisson",
    requests: Annotated[int, typer.Option(help="At most so many requests.", min=1)] = 100,
    rate: Annotated[float, typer.Option(help="Requests a second, for poisson and bursty.")] = 1.0,
    prompt_tokens: Annotated[int, typer.Option(help="Mean prompt, for poisson and bursty.", min=1)] = 256,
    output_tokens: Annotated[int, typer.Option(help="Mean answer, for poisson and bursty.", min=1)] = 64,
    tenants: Annotated[int, typer.Option(help="Tenants, for poisson and bursty.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of poisson and bursty.")] = 0,
    users: Annotated[
        str | None,
        typer.Option(help="So many users who wait for their answers, instead of arrivals; 1,4,16 is a run for each."),
    ] = None,
    time_scale: Annotated[float, typer.Option(help="Requests come so many times as fast.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="Prompts and answers are so many times as long.")] = 1.0,
    model: Annotated[str | None, typer.Option(help="Name that the server knows.", show_default="its own")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="PAGODA_BENCH_KEY", help="Key of the server.")] = None,
    vocab_size: Annotated[int, typer.Option(help="Prompts are made of token ids below this.", min=11)] = 1000,
    warmup: Annotated[
        str, typer.Option(help="Seconds at the beginning that do not count; auto: until the run is steady.")
    ] = "0",
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = 600.0,
    slo_ttft: Annotated[float, typer.Option(help="Seconds to the first token that are promised.")] = 2.0,
    slo_tpot: Annotated[float, typer.Option(help="Seconds a token that are promised.")] = 0.1,
    against: Annotated[Path | None, typer.Option(help="serve.json of another run, to be compared with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for serve.json, report.html and its pictures.")] = None,
    json: opt.Json = False,
) -> None:
    """Put load on a server and say what its users wait for: TTFT, TPOT, ITL, end to end; goodput, fairness."""
    import asyncio

    from ..bench.latency import Promise
    from ..bench.load import Target, reach
    from ..bench.load_report import write_report
    from ..bench.pyplot import pyplot
    from ..bench.records import Run, read_records, write_records
    from ..bench.serving import parse_users, parse_warmup, put_load, summarize_run
    from ..bench.trace_files import arrivals_of

    arrivals = arrivals_of(
        trace, requests, rate=rate, seed=seed, tenants=tenants, prompt=prompt_tokens, output=output_tokens,
        time=time_scale, length=length_scale,
    )  # fmt: skip
    before = read_records(against) if against is not None else None
    seconds, sweep = parse_warmup(warmup), parse_users(users)
    target = Target(url, model, api_key, vocab_size, timeout)
    if out is not None:
        pyplot()  # what is missing is said before the load, not after it
    asyncio.run(reach(target))
    runs = list[Run]()
    for number in sweep:
        with _progress(len(arrivals)) as told:
            run = asyncio.run(put_load(target, arrivals, number, told))
        failed = [r.error for r in run.records if r.error]
        if len(failed) == len(run.records):
            print(f"error: no request was answered: {failed[0]}", file=sys.stderr)
            raise typer.Exit(1)
        summarize_run(run, Promise(slo_ttft, slo_tpot), warmup=seconds, before=before)
        runs.append(run)
        if out is not None:
            write_records(out if len(sweep) == 1 else out / f"users-{number}", run)
    if out is not None:
        write_report(out, runs, before)
    if json:
        emit_json(runs[0].summary if len(runs) == 1 else {"runs": [run.summary for run in runs]})
        return
    for run in runs:
        _show(run.label, run.summary)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("answered", total=total)
        yield lambda done, of: bar.update(task, completed=done)


def _show(label: str, told: dict[str, Any]) -> None:
    from ..bench.load_report import COLUMNS, MEASURES, PLAIN

    rows = [[name, *(f"{told[name].get(n, 0.0):.4f}" for n in COLUMNS)] for name in MEASURES]
    print_table(f"{label}, seconds", ["measure", *(f">{n}" for n in COLUMNS)], rows)
    plain = [[name, f"{told[name]:.4g}"] for name in PLAIN]
    plain += [[name.replace("_", " "), f"{value:.4g}"] for name, value in told.get("server", {}).items()]
    print_table("run", ["what", ">value"], plain)
    if not told["steady"]["settled"]:
        print("the run did not settle: it is too short, or the server was given more than it can do")
    for error in told["errors"]:
        print(f"failed: {error}")
    for d in told.get("against", []):
        verdict = "clear" if d["is_clear"] else "within the noise"
        interval = f"{d['low']:+.4f} … {d['high']:+.4f}"
        print(f"{d['measure']}: {d['a']:.4f} s before, {d['b']:.4f} s now, difference {interval} (95 %): {verdict}")
