"""One run of ``pagoda bench serve``: load and, beside it, a look at the server's metrics; then what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.errors import ConfigError
from ..plan.simulator.sequence import Served
from .latency import Promise, compare, summarize
from .load import Progress, Target, closed_loop, open_loop
from .records import Run
from .steady import steady_state
from .timeline import Sample, watch
from .traces import Arrival


def parse_users(text: str | None) -> list[int | None]:
    """``"4"`` and ``"1,4,16"`` are users of closed loops, one run each; None is one run of an open loop."""
    if text is None:
        return [None]
    try:
        users = [int(part) for part in text.split(",")]
    except ValueError:
        users = [0]
    if min(users) < 1:
        raise ConfigError(f"users is {text!r}; give a number from 1, or several as in 1,4,16")
    return list(users)


def parse_warmup(text: str) -> float | None:
    """Seconds, or None for ``auto``."""
    if text == "auto":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"warmup is {text!r}; give seconds from 0, or auto")
    return seconds


async def put_load(
    target: Target, arrivals: Sequence[Arrival], users: int | None, progress: Progress | None = None
) -> Run:
    """All arrivals, answered or failed, and what the server's metrics said meanwhile."""
    samples: list[Sample] = []
    watching = asyncio.create_task(watch(target, samples))
    try:
        if users is None:
            records = await open_loop(target, arrivals, progress)
        else:
            records = await closed_loop(target, arrivals, users, progress)
    finally:
        watching.cancel()
    label = f"{len(arrivals)} requests, open loop" if users is None else f"{users} users"
    return Run(label, records, samples, users=users)


def summarize_run(run: Run, promise: Promise, *, warmup: float | None, before: Sequence[Served] | None = None) -> None:
    """Fills ``run.summary``. ``warmup`` None: what the run itself says (``steady_state``); where it never settles,
    nothing is left out. Raises ValueError where no request was answered.
    """
    steady = steady_state(run.records)
    start = steady.start if warmup is None else warmup
    failed = sorted({r.error for r in run.records if r.error})
    run.summary = summarize(run.records, promise, warmup=start).as_dict() | {
        "users": run.users, "warmup": start, "steady": steady.as_dict(), "errors": failed[:5],
    }  # fmt: skip
    if run.samples:
        run.summary["server"] = {
            "most_running": max(s.running for s in run.samples),
            "most_waiting": max(s.waiting for s in run.samples),
            "most_kv_share": max(s.kv_share for s in run.samples),
            "preemptions": run.samples[-1].preemptions,
        }
    if before is not None:
        run.summary["against"] = [d.as_dict() for d in compare(before, [r for r in run.records if r.at >= start])]
