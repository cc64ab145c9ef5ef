"""``pagoda bench serve``: load on a running server."""

from __future__ import annotations

import sys
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
        int | None, typer.Option(help="So many users who wait for their answers, instead of arrivals.", min=1)
    ] = None,
    time_scale: Annotated[float, typer.Option(help="Requests come so many times as fast.")] = 1.0,
    length_scale: Annotated[float, typer.Option(help="Prompts and answers are so many times as long.")] = 1.0,
    model: Annotated[str | None, typer.Option(help="Name that the server knows.", show_default="its own")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="PAGODA_BENCH_KEY", help="Key of the server.")] = None,
    vocab_size: Annotated[int, typer.Option(help="Prompts are made of token ids below this.", min=11)] = 1000,
    warmup: Annotated[float, typer.Option(help="Seconds at the beginning that do not count.", min=0)] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = 600.0,
    slo_ttft: Annotated[float, typer.Option(help="Seconds to the first token that are promised.")] = 2.0,
    slo_tpot: Annotated[float, typer.Option(help="Seconds a token that are promised.")] = 0.1,
    against: Annotated[Path | None, typer.Option(help="serve.json of another run, to be compared with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for serve.json, ttft.svg, itl.svg and e2e.svg.")] = None,
    json: opt.Json = False,
) -> None:
    """Put load on a server and say what its users wait for: TTFT, TPOT, ITL, end to end; goodput, fairness."""
    import asyncio

    from ..bench.latency import Promise, compare, summarize
    from ..bench.load import Target, closed_loop, open_loop
    from ..bench.records import read_records, write_records
    from ..bench.traces import arrivals_of

    arrivals = arrivals_of(
        trace, requests, rate=rate, seed=seed, tenants=tenants, prompt=prompt_tokens, output=output_tokens,
        time=time_scale, length=length_scale,
    )  # fmt: skip
    before = read_records(against) if against is not None else None
    target = Target(url, model, api_key, vocab_size, timeout)
    loop = open_loop(target, arrivals, _told) if users is None else closed_loop(target, arrivals, users, _told)
    records = asyncio.run(loop)
    failed = [r.error for r in records if r.error]
    if len(failed) == len(records):
        print(f"error: no request was answered: {failed[0]}", file=sys.stderr)
        raise typer.Exit(1)
    summary = summarize(records, Promise(slo_ttft, slo_tpot), warmup=warmup)
    told: dict[str, Any] = summary.as_dict() | {"errors": sorted(set(failed))[:5]}
    if before is not None:
        told["against"] = [d.as_dict() for d in compare(before, records)]
    if out is not None:
        write_records(out, records, told)
    emit_json(told) if json else _show(told)


def _told(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} answered", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _show(told: dict[str, Any]) -> None:
    measures = ("ttft", "tpot", "itl", "e2e")
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [[name, *(f"{told[name].get(n, 0.0):.4f}" for n in names)] for name in measures]
    print_table("seconds", ["measure", *(f">{n}" for n in names)], rows)
    plain = ("num_requests", "num_failed", "requests_per_second", "output_tokens_per_second", "goodput_per_second",
             "good_share", "cached_share", "jain", "max_min")  # fmt: skip
    print_table("run", ["what", ">value"], [[name, f"{told[name]:.4g}"] for name in plain])
    for error in told["errors"]:
        print(f"failed: {error}")
    for d in told.get("against", []):
        verdict = "clear" if d["is_clear"] else "within the noise"
        interval = f"{d['low']:+.4f} … {d['high']:+.4f}"
        print(f"{d['measure']}: {d['a']:.4f} s before, {d['b']:.4f} s now, difference {interval} (95 %): {verdict}")
