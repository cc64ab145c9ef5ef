"""Measure: what KV policies and weight formats save and cost, what users of a server wait for.

pagoda bench kv lantern          methods x budgets over quality tasks
pagoda bench weights lantern     formats over quality, bytes and speed
pagoda bench serve URL           load on a running server
pagoda bench sim TRACE           scheduling policies on a trace, simulated
"""

from __future__ import annotations

from ._bench_kv import kv
from ._bench_serve import serve
from ._bench_sim import sim
from ._bench_weights import weights
from ._groups import group

app = group()
app.command()(kv)
app.command()(weights)
app.command()(serve)
app.command()(sim)


@app.callback()
def bench() -> None:
    """Measure: what KV policies and weight formats save and cost, what users of a server wait for.

    Every measurement has --json, and --help of its own.
    """
