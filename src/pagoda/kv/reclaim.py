"""What would be free if the prefix cache gave up its oldest entries: tried first, then done or undone."""

from __future__ import annotations

from .pages import PagePool
from .prefix import Entry, PrefixCache
from .table import expand_runs


class Reclaim:
    """A trial eviction. During the trial ``pool.refs`` counts as if the entries were gone, while the free containers are
    not touched; so questions about sharing are answered as they will be. Ends with ``commit`` or ``rollback``, with
    nothing allocated or freed in between.

    ``num_free``: runs of ``run`` pages that would be free.
    """

    def __init__(self, pool: PagePool, prefix: PrefixCache, run: int) -> None:
        self._pool, self._prefix, self._run = pool, prefix, run
        self._gone: list[Entry] = []
        self.num_free = pool.num_free_runs(run)

    def step(self) -> bool:
        """Gives up one more entry, or returns False: none is left that may go."""
        entry = self._prefix.detach_oldest()
        if entry is None:
            return False
        self._gone.append(entry)
        pages = expand_runs(entry.runs, entry.run, 1)
        self._pool.refs[pages] -= 1
        dying = pages[self._pool.refs[pages] == 0]
        if self._run == 1:
            self.num_free += len(dying)
            return True
        # A run that had a living page was not free before; it is now if all its pages are dead.
        runs = self._pool.refs.reshape(-1, self._run)[sorted(set((dying // self._run).tolist()))]
        self.num_free += int((~runs.any(axis=1)).sum())
        return True

    def rollback(self) -> None:
        """As if nothing had been tried."""
        self._restore_counts()
        for entry in reversed(self._gone):
            self._prefix.attach(entry)

    def commit(self) -> None:
        """The entries are gone, and what only they used is free."""
        self._restore_counts()
        for entry in self._gone:
            self._pool.unref_runs(entry.runs, entry.run)
        self._prefix.stats.num_evicted_pages += len(self._gone)

    def _restore_counts(self) -> None:
        for entry in self._gone:
            self._pool.refs[expand_runs(entry.runs, entry.run, 1)] += 1
