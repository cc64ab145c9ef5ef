"""A run of ``pagoda bench serve`` as one HTML page: tables, and pictures that lie beside it as PNG files too."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..plan.simulator.sequence import Served
from .latency import e2e, ttft
from .pyplot import pyplot
from .records import Run, answered

MEASURES = ("ttft", "tpot", "itl", "e2e")
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
PLAIN = (
    "num_requests", "num_failed", "requests_per_second", "output_tokens_per_second", "goodput_per_second",
    "good_share", "cached_share", "jain", "max_min",
)  # fmt: skip
STYLE = """body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}"""


def write_report(folder: Path, runs: Sequence[Run], before: Sequence[Served] | None = None) -> None:
    """``report.html``, ``latency.png``, ``timeline.png`` and, of several runs, ``sweep.png``. ``before``: another run's
    requests, drawn beside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"latency": _latency(runs, before), "timeline": _timeline(runs)}
    if len(runs) > 1:
        drawn["sweep"] = _sweep(runs)
    pictures = []
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=90)
        pyplot().close(figure)
        data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        pictures.append(f'<h2>{name.title()}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
    tables = "".join(_tables(run) for run in runs)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>pagoda bench serve</title>'
        f"<style>{STYLE}</style><h1>pagoda bench serve</h1>{tables}{''.join(pictures)}</html>\n"
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


# Tables -------------------------------------------------------------------------------------------------------------


def _tables(run: Run) -> str:
    told = run.summary
    rows = [[name, *(f"{told[name].get(c, 0.0):.4f}" for c in COLUMNS)] for name in MEASURES]
    plain = [[name.replace("_", " "), f"{told[name]:.4g}"] for name in PLAIN]
    parts = [f"<h2>{escape(run.label)}</h2>", _table(["seconds", *COLUMNS], rows), _table(["", ""], plain)]
    if told.get("against"):
        parts.append(_table(["now against before, seconds", "before", "now", "95 % interval", ""], _differences(told)))
    parts += [f"<p>failed: {escape(error)}</p>" for error in told.get("errors", ())]
    return "".join(parts)


def _differences(told: dict[str, Any]) -> list[list[str]]:
    return [
        [
            d["measure"], f"{d['a']:.4f}", f"{d['b']:.4f}", f"{d['low']:+.4f} … {d['high']:+.4f}",
            "clear" if d["is_clear"] else "within the noise",
        ]
        for d in told["against"]
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(c)}</th>" for c in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


# Pictures -----------------------------------------------------------------------------------------------------------


def _latency(runs: Sequence[Run], before: Sequence[Served] | None) -> Any:
    """Which share of the requests (of the gaps) had to wait at most so long."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = pyplot().subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    listed = [(run.label, answered(run.records)) for run in runs]
    if before is not None:
        listed.append(("before", answered(before)))
    values: dict[str, Callable[[list[Served]], list[float]]] = {
        "time to first token": lambda records: [ttft(r) for r in records],
        "between tokens": lambda records: [b - a for r in records for a, b in pairwise(r.token_at)],
        "end to end": lambda records: [e2e(r) for r in records],
    }
    for axis, (name, of) in zip(axes, values.items(), strict=True):
        for label, records in listed:
            ordered = sorted(of(records))
            axis.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], label=label)
        axis.set(xscale="log", xlabel=f"{name}, s", ylim=(0, 1))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", rotation=45)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests")
    axes[-1].legend(fontsize=8)
    return figure


def _timeline(runs: Sequence[Run]) -> Any:
    """Queues, KV, preemptions and tokens a second; seconds of all runs one after another."""
    figure, axes = pyplot().subplots(4, 1, figsize=(12, 8), sharex=True, layout="constrained")
    offset = 0.0
    for run in runs:
        times = [offset + s.at for s in run.samples]
        first = offset == 0.0
        axes[0].plot(times, [s.running for s in run.samples], "C0", label="running" if first else None)
        axes[0].plot(times, [s.waiting for s in run.samples], "C1", label="waiting" if first else None)
        axes[1].plot(times, [100 * s.kv_share for s in run.samples], "C2")
        axes[2].step(times, [s.preemptions for s in run.samples], "C3", where="post")
        seconds, speeds = _speed(run.records)
        axes[3].plot([offset + at for at in seconds], speeds, "C4")
        offset += max([*times, *(offset + at for at in seconds)], default=offset) - offset
    for axis, name in zip(axes, ("sequences", "KV in use, %", "preemptions", "tokens a second"), strict=True):
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("seconds")
    return figure


def _speed(records: Sequence[Served]) -> tuple[list[float], list[int]]:
    """Output tokens of every second."""
    counts: dict[int, int] = {}
    for record in records:
        for at in record.token_at:
            counts[int(at)] = counts.get(int(at), 0) + 1
    seconds = range(max(counts) + 1) if counts else range(0)
    return [s + 0.5 for s in seconds], [counts.get(s, 0) for s in seconds]


def _sweep(runs: Sequence[Run]) -> Any:
    """What more users cost each of them, and what the machine gains."""
    figure, axes = pyplot().subplots(1, 2, figsize=(12, 3.6), layout="constrained")
    users = [run.users for run in runs]
    axes[0].plot(users, [run.summary["output_tokens_per_second"] for run in runs], marker="o")
    axes[0].set(xlabel="users", ylabel="output tokens a second", xscale="log")
    for name in ("ttft", "tpot", "e2e"):
        for column, style in (("p50", "-"), ("p99", "--")):
            values = [run.summary[name].get(column) for run in runs]
            axes[1].plot(users, values, style, marker="o", label=f"{name} {column}")
    axes[1].set(xlabel="users", ylabel="seconds", xscale="log", yscale="log")
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure
