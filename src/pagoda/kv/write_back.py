"""Pages on their way out of the pool, put together into runs while they wait for the disk."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from .tiers._base import Name

Block = tuple[Name, bytes]
"""A page of tokens, and the bytes of its KV block."""


class Outbox:
    """From the engine's thread to the writer's. Whatever came while the disk was busy goes together."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[Block] | None] = queue.SimpleQueue()

    def put(self, blocks: list[Block]) -> None:
        self._queue.put(blocks)

    def close(self) -> None:
        """What is in it is still taken."""
        self._queue.put(None)

    def take(self) -> list[list[Block]] | None:
        """Runs of all that waits, in order; waits for something. None: it is closed."""
        found = self._queue.get()
        while found is not None and not self._queue.empty():
            more = self._queue.get()
            if more is None:
                self.close()  # once more, for the next call
                break
            found = found + more
        return None if found is None else in_runs(found)


def in_runs(blocks: Sequence[Block]) -> list[list[Block]]:
    """Pages that follow each other in one text, side by side, wherever they were between others'."""
    runs, ends = list[list[Block]](), dict[bytes, list[Block]]()
    for block in blocks:
        name = block[0]
        run = ends.pop(name.parent, None)
        if run is None:
            runs.append(run := [])
        run.append(block)
        ends[name.key] = run
    return runs
