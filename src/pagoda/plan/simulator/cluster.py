"""Replicas side by side, each request sent to the one with the fewest open ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...core.errors import ConfigError
from .replica import Job, Replica, Served, Setting


@dataclass(frozen=True, slots=True)
class Simulated:
    """``seconds`` of the false clock in ``wall_seconds`` of ours; an event is an arrival or a generated token."""

    served: list[Served]
    seconds: float
    wall_seconds: float
    num_steps: int
    num_tokens: int
    num_events: int
    busy_share: float


def simulate(
    jobs: Iterable[Job], setting: Setting, *, replicas: int = 1, progress: Callable[[int], None] | None = None
) -> Simulated:
    """All jobs, in the order of their arrival, to their end. ``progress`` is called with the number that arrived."""
    if replicas < 1:
        raise ConfigError(f"replicas is {replicas}; give 1 or more")
    started, served = time.perf_counter(), list[Served]()
    machines = [Replica(setting) for _ in range(replicas)]
    for number, job in enumerate(jobs):
        for machine in machines:
            machine.run_until(job.at)
        record = Served(job.at, len(job.prompt), job.num_output, job.tenant)
        served.append(record)
        min(machines, key=lambda machine: machine.num_open).add(number, job, record)
        if progress is not None:
            progress(number + 1)
    for machine in machines:
        machine.run_until(float("inf"))
    end = max((machine.clock.now() for machine in machines), default=0.0)
    return Simulated(
        served=served,
        seconds=end,
        wall_seconds=time.perf_counter() - started,
        num_steps=sum(machine.num_steps for machine in machines),
        num_tokens=sum(machine.num_tokens for machine in machines),
        num_events=len(served) + sum(len(record.token_at) for record in served),
        busy_share=sum(machine.busy_seconds for machine in machines) / (end * replicas) if end else 0.0,
    )
