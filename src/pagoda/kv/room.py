"""Where pages come from when they run out: free ones, growth of the pool, and at last prefixes that nobody uses."""

from __future__ import annotations

from collections.abc import Callable

from .pages import Int32s, PagePool
from .prefix import Given, PrefixCache
from .table import expand_runs


class Room:
    """Makes room in a pool.

    grow    is asked for a number of blocks, and returns how many the ledger granted (0 … asked); they are then added to
            the pool, and stay with it even when that was not enough: ``shrink`` gives them back. Its second argument:
            whether they are the last resort, since all prefixes would not do.
    growable  how many blocks it could get now, at most; None: as many as the pool may still grow by.
    """

    def __init__(
        self,
        pool: PagePool,
        prefix: PrefixCache | None,
        grow: Callable[[int, bool], int] | None,
        growable: Callable[[], int] | None = None,
    ) -> None:
        self._pool, self._prefix, self._grow, self._growable = pool, prefix, grow, growable

    def make(self, run: int, needed: Callable[[], int]) -> bool:
        """Sees to it that ``needed()`` runs of ``run`` pages are free. It is asked again as entries go, since that ends
        sharing. False if it cannot be: then all entries are still there, as where it raises.
        """
        missing = needed() - self._pool.num_free_runs(run)
        if missing > 0 and self._enlarge(run, missing):
            missing = needed() - self._pool.num_free_runs(run)
        if missing > 0:
            missing = self._reclaim(run, needed)
        if missing > 0 and self._enlarge(run, missing, last=True):
            missing = self._reclaim(run, needed)
        return missing <= 0

    def _enlarge(self, run: int, num: int, *, last: bool = False) -> bool:
        """Asks for the blocks of ``num`` runs; whether any were granted."""
        pool = self._pool
        blocks = min(-(-num * run // pool.fmt.pages_per_block), pool.limit_blocks - pool.num_blocks)
        granted = 0 if self._grow is None or blocks <= 0 else self._grow(blocks, last)
        pool.grow(granted)
        return granted > 0

    def _reclaim(self, run: int, needed: Callable[[], int]) -> int:
        """Gives up prefixes that nobody uses; returns how many runs are missing then, and gives up none if any are."""
        if self._prefix is None:
            return needed() - self._pool.num_free_runs(run)
        self._prefix.expire()
        trial = Reclaim(self._pool, self._prefix, run)
        missing = 1
        try:
            while (missing := needed() - trial.num_free) > 0 and trial.step():
                pass
        finally:
            if missing <= 0:
                trial.commit()
            else:
                trial.rollback()
        return missing

    def take(self, run: int, num: int) -> Int32s:
        """``num`` runs that ``make`` has seen to."""
        runs = self._pool.alloc_runs(run, num)
        assert runs is not None, "room was made before"
        return runs

    def shrink(self, num_blocks: int) -> list[int]:
        """Up to ``num_blocks`` blocks leave the pool, unused prefixes given up for them if need be."""
        run = self._pool.fmt.pages_per_block
        if self._prefix is not None:
            trial = Reclaim(self._pool, self._prefix, run)
            while trial.num_free < num_blocks and trial.step():
                pass
            trial.commit()
        return self._pool.shrink(num_blocks)

    def available_blocks(self) -> int:
        """Blocks (or as many single pages) that ``make`` could find, at most: the ledger may refuse growth, and a page
        of an unused prefix may be shared still with a sequence that evicted from it.
        """
        growth = max(0, self._pool.limit_blocks - self._pool.num_blocks) if self._grow is not None else 0
        if self._growable is not None:
            growth = min(growth, self._growable())
        spare = self._pool.num_free_pages + (self._prefix.num_spare_pages if self._prefix is not None else 0)
        return spare // self._pool.fmt.pages_per_block + growth

    def idle_blocks(self) -> int:
        """Blocks that ``shrink`` could take out of the pool, at most."""
        return self._pool.num_free_blocks + (self._prefix.num_idle if self._prefix is not None else 0)


class Reclaim:
    """A trial eviction from the prefix cache. During the trial ``pool.refs`` counts as if the entries were gone, while
    the free containers are not touched; so questions about sharing are answered as they will be. Ends with ``commit``
    or ``rollback``, with nothing allocated or freed in between.

    ``num_free``: runs of ``run`` pages that would be free.
    """

    def __init__(self, pool: PagePool, prefix: PrefixCache, run: int) -> None:
        self._pool, self._prefix, self._run = pool, prefix, run
        self._gone: list[Given] = []
        self.num_free = pool.num_free_runs(run)

    def step(self) -> bool:
        """Gives up one more entry, or a part of one, or returns False: none is left that may go."""
        given = self._prefix.give_up()
        if given is None:
            return False
        self._gone.append(given)
        pages = expand_runs(given.runs, given.run, 1)
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
        for given in reversed(self._gone):
            self._prefix.take_back(given)

    def commit(self) -> None:
        """The entries are gone, and what only they used is free."""
        self._restore_counts()
        for given in self._gone:
            self._pool.unref_runs(given.runs, given.run)
        num_thinned = sum(given.before is not None for given in self._gone)
        self._prefix.stats.num_thinned_pages += num_thinned
        self._prefix.stats.num_evicted_pages += len(self._gone) - num_thinned

    def _restore_counts(self) -> None:
        for given in self._gone:
            self._pool.refs[expand_runs(given.runs, given.run, 1)] += 1
