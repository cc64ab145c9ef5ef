"""``pagoda bench sim``: a trace through simulated replicas, one scheduling policy after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..plan.simulator.cluster import Simulated, simulate
from ..plan.simulator.replica import Setting
from ..plan.simulator.sequence import BlockPrompt, Job
from .latency import Promise, Summary, compare, summarize
from .traces import Arrival


@dataclass(frozen=True, slots=True)
class Row:
    """One policy: what its users waited for, and what the simulation was."""

    scheduling: str
    summary: Summary
    run: Simulated


PAGE_SIZE = 16


def page_size_of(arrivals: Sequence[Arrival]) -> int:
    """Pages of the simulated pool: 16 tokens, or the trace's blocks where it says which are shared.

    Nothing shorter than a block is shared there, so finer pages find no more and cost 30 times the hashing; what they
    round off is half a block a sequence.
    """
    return arrivals[0].block if all(a.blocks for a in arrivals) else PAGE_SIZE


def jobs(arrivals: Sequence[Arrival]) -> Iterator[Job]:
    """Jobs as they arrive. A prompt without known blocks is a range: it has a length, and begins like no other."""
    for a in arrivals:
        prompt: Sequence[int] = range(a.number << 32, (a.number << 32) + a.num_prompt)
        if a.blocks:
            prompt = BlockPrompt(a.blocks, a.block, a.num_prompt)
        yield Job(a.at, prompt, a.num_output, a.tenant, a.priority)


def run(
    arrivals: Sequence[Arrival], policies: Sequence[str], setting: Setting, *, promise: Promise, replicas: int = 1,
    progress: Callable[[str, int], None] | None = None,
) -> list[Row]:  # fmt: skip
    """The same arrivals under each policy, on replicas that are ``setting`` else."""
    rows = []
    for name in policies:
        use_prefix = setting.use_prefix and any(a.blocks for a in arrivals)

        def told(number: int, name: str = name) -> None:
            if progress is not None:
                progress(name, number)

        one = replace(setting, scheduling=name, use_prefix=use_prefix)
        done = simulate(jobs(arrivals), one, replicas=replicas, progress=told)
        rows.append(Row(name, summarize(done.served, promise), done))
    return rows


def as_dict(rows: Sequence[Row]) -> dict[str, Any]:
    """Plain data: ``policies`` by name, and ``against_first``: each policy beside the first one, with intervals."""
    first = rows[0].run.served
    return {
        "policies": {
            row.scheduling: row.summary.as_dict()
            | {
                "busy_share": row.run.busy_share,
                "num_steps": row.run.num_steps,
                "simulated_seconds": row.run.seconds,
                "wall_seconds": row.run.wall_seconds,
                "events_per_second": row.run.num_events / row.run.wall_seconds,
                "requests_per_minute": 60 * len(row.run.served) / row.run.wall_seconds,
            }
            for row in rows
        },
        "against_first": {row.scheduling: [d.as_dict() for d in compare(first, row.run.served)] for row in rows[1:]},
    }


def markdown(rows: Sequence[Row]) -> str:
    """A table for people; seconds."""
    head = (
        "| policy | good/s | good | tok/s | TTFT mean | p99 | ITL p99 | e2e mean | p99 | preemptions | cached | Jain |"
    )
    lines = [head, "| --- |" + " ---: |" * 11]
    for row in rows:
        s = row.summary
        lines.append(
            f"| {row.scheduling} | {s.goodput_per_second:.2f} | {s.good_share:.0%} | {s.output_tokens_per_second:.0f} "
            f"| {s.ttft['mean']:.2f} | {s.ttft['p99']:.2f} | {s.itl.get('p99', 0.0):.3f} | {s.e2e['mean']:.2f} "
            f"| {s.e2e['p99']:.2f} | {s.num_preemptions} | {s.cached_share:.0%} | {s.jain:.3f} |"
        )
    return "\n".join(lines)
