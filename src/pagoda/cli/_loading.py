"""What commands need that load a model and run nothing: a budget of their own, and a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def ledger_of(memory: str | None) -> Any:
    """The budget that ``--memory`` says, with this process in it."""
    from ..budget import Ledger, MachineProbe, default_budget, lease_runtime

    probe = MachineProbe()
    budget = default_budget(memory, probe)
    ledger = Ledger(budget.total_bytes, reason=budget.reason)
    ledger.gather()
    lease_runtime(ledger, probe)
    return ledger


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """``progress(done, total)`` on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
