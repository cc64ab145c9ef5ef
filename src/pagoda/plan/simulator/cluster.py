"""Replicas side by side, each request sent to one of them; by default to the one with the fewest open ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from .replica import Replica, Setting
from .sequence import Job, Served

Route = Callable[[Job, Sequence[Replica]], Replica]


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


def fewest_open(job: Job, machines: Sequence[Replica]) -> Replica:
    """The one that has the least to do, by number of requests."""
    return min(machines, key=lambda machine: machine.num_open)


def simulate(
    jobs: Iterable[Job], setting: Setting | Sequence[Setting], *, replicas: int = 1, route: Route = fewest_open,
    progress: Callable[[int], None] | None = None,
) -> Simulated:  # fmt: skip
    """All jobs, in the order of their arrival, to their end, on ``replicas`` engines of a setting (or one of each of
    several). ``progress`` is called with the number that arrived.
    """
    if replicas < 1:
        raise ConfigError(f"replicas is {replicas}; give 1 or more")
    settings = [setting] * replicas if isinstance(setting, Setting) else list(setting)
    started, served = time.perf_counter(), list[Served]()
    machines = [Replica(one) for one in settings]
    for number, job in enumerate(jobs):
        for machine in machines:
            machine.run_until(job.at)
        record = Served(job.at, len(job.prompt), job.num_output, job.tenant)
        served.append(record)
        route(job, machines).add(number, job, record)
        if progress is not None:
            progress(number + 1)
    for machine in machines:
        machine.run_until(float("inf"))
    return totals(served, machines, time.perf_counter() - started)


def totals(served: list[Served], machines: Sequence[Replica], wall_seconds: float) -> Simulated:
    """What the machines did together."""
    end = max((machine.clock.now() for machine in machines), default=0.0)
    return Simulated(
        served=served,
        seconds=end,
        wall_seconds=wall_seconds,
        num_steps=sum(machine.num_steps for machine in machines),
        num_tokens=sum(machine.num_tokens for machine in machines),
        num_events=len(served) + sum(len(record.token_at) for record in served),
        busy_share=sum(machine.busy_seconds for machine in machines) / (end * len(machines)) if end else 0.0,
    )
