"""The page pool: which pages are free, and how many owners each used page has. Bytes live in ``storage``.

Free space is a slab allocator of three levels, each a container of whole runs only::

    block   L*H pages   stacks: touched (bytes are resident), given back, never used
    group   H pages     one layer of a block that is split: bit mask of its free layers
    page    1 page      one head of a group that is split: bit mask of its free heads

A run that is freed merges upwards as soon as its siblings are free too, so that free pages are always counted at the
coarsest level that they fill. Every operation is O(1) amortized in the number of pages of the pool.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError
from ..core.types import Granularity, KVFormat

Int32s: TypeAlias = npt.NDArray[np.int32]
MAX_PAGES = 2**31 - 1  # page ids are int32


class PagePool:
    """Accounting of ``max_blocks`` blocks, of which ``num_blocks`` may be used now and ``limit_blocks`` ever.

    A *run* is ``run`` consecutive pages that start at a multiple of ``run``: ``fmt.pages_per_run(granularity)``, which
    is a block, a group or a page. Block b owns the ids ``[b * P, (b + 1) * P)`` with ``P = fmt.pages_per_block``.
    """

    def __init__(self, fmt: KVFormat, num_blocks: int, *, max_blocks: int | None = None) -> None:
        max_blocks = num_blocks if max_blocks is None else max_blocks
        if not 0 <= num_blocks <= max_blocks:
            raise ConfigError(f"a pool of {num_blocks} blocks within at most {max_blocks}; accepted: 0 … {max_blocks}")
        if max_blocks * fmt.pages_per_block > MAX_PAGES:
            most = MAX_PAGES // fmt.pages_per_block
            raise ConfigError(f"a pool of {max_blocks} blocks has page ids beyond int32; accepted: up to {most} blocks")
        self.fmt, self.max_blocks, self.limit_blocks = fmt, max_blocks, max_blocks
        self._P, self._H, self._L = fmt.pages_per_block, fmt.num_kv_heads, fmt.num_layers
        # calloc: counts of blocks that were never used cost no memory.
        self.refs: Int32s = np.zeros(max_blocks * self._P, np.int32)
        self._touched: list[int] = []  # free, their bytes may be resident: used first, last in first out
        self._given_back: list[int] = []  # free, once used, bytes given back
        self._retired: list[int] = []  # not to be used until the pool grows again
        self._next, self._end = 0, num_blocks  # [next, end): never used
        self._split_blocks: dict[int, int] = {}  # block -> mask of its free groups, neither none nor all
        self._split_groups: dict[int, int] = {}  # group -> mask of its free pages, neither none nor all
        self._num_loose_groups = self._num_loose_pages = 0  # set bits of the two

    # Counters -------------------------------------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        """Blocks that may be used now."""
        return self._end - len(self._retired)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that are free whole."""
        return len(self._touched) + len(self._given_back) + self._end - self._next

    @property
    def num_free_pages(self) -> int:
        """Free pages, those in whole blocks included."""
        return self.num_free_blocks * self._P + self._num_loose_groups * self._H + self._num_loose_pages

    @property
    def num_used_pages(self) -> int:
        """Pages with an owner."""
        return self.num_blocks * self._P - self.num_free_pages

    @property
    def num_touched_blocks(self) -> int:
        """Blocks whose bytes may be resident: used now, or once and not given back since."""
        return self._next - len(self._given_back) - len(self._retired)

    @property
    def num_stale_blocks(self) -> int:
        """Free blocks whose bytes may be resident: what ``give_back`` could have."""
        return len(self._touched)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that were ever handed out: those with the lowest ids."""
        return self._next

    def num_free_runs(self, run: int) -> int:
        """Runs of ``run`` pages (a block, a group or a page) that could be handed out now."""
        if run == self._P:
            return self.num_free_blocks
        if run == self._H:
            return self.num_free_blocks * self._L + self._num_loose_groups
        return self.num_free_pages

    # Handing out ----------------------------------------------------------------------------------------------------

    def alloc(self, granularity: Granularity) -> int | None:
        """One run with one owner: its first page id, or None when there is none."""
        runs = self.alloc_runs(self.fmt.pages_per_run(granularity), 1)
        return None if runs is None else int(runs[0])

    def alloc_runs(self, run: int, num: int) -> Int32s | None:
        """``num`` runs with one owner each: their first page ids ``[num]``. None (nothing changed) if too few are free.

        Leftovers of split groups and blocks go first: nobody coarser can use them.
        """
        if num > self.num_free_runs(run):
            return None
        if run == self._P:
            runs = np.fromiter((self._pop_block() for _ in range(num)), np.int32, num) * np.int32(self._P)
        elif run == self._H:
            runs = self._take_groups(num) * np.int32(self._H)
        else:
            runs = self._take_pages(num)
        self.refs.reshape(-1, run)[runs // run] = 1
        return runs

    def _pop_block(self) -> int:
        if self._touched:
            return self._touched.pop()
        if self._given_back:
            return self._given_back.pop()
        self._next += 1
        return self._next - 1

    def _take_groups(self, num: int) -> Int32s:
        """Ids of ``num`` groups."""
        groups: list[int] = []
        while len(groups) < num:
            missing = num - len(groups)
            if self._split_blocks:
                block, mask = self._split_blocks.popitem()
                self._num_loose_groups -= mask.bit_count()
            else:
                block, mask = self._pop_block(), (1 << self._L) - 1
            taken, rest = _take_bits(mask, missing)
            groups.extend(block * self._L + layer for layer in taken)
            if rest:
                self._split_blocks[block] = rest
                self._num_loose_groups += rest.bit_count()
        return np.array(groups, np.int32)

    def _take_pages(self, num: int) -> Int32s:
        """Ids of ``num`` single pages: of split groups, then groups of split blocks, then whole blocks."""
        parts: list[Int32s] = []
        pages: list[int] = []
        missing = num
        while missing and self._split_groups:
            group, mask = self._split_groups.popitem()
            taken, rest = _take_bits(mask, missing)
            self._num_loose_pages -= len(taken)
            if rest:
                self._split_groups[group] = rest
            pages.extend(group * self._H + head for head in taken)
            missing = num - len(pages)
        parts.append(np.array(pages, np.int32))
        while missing >= self._P and not self._split_blocks:
            parts.append(np.arange(self._P, dtype=np.int32) + np.int32(self._pop_block() * self._P))
            missing -= self._P
        if missing:
            groups = self._take_groups(-(-missing // self._H))
            heads = np.arange(self._H, dtype=np.int32)
            whole = (groups[:, None] * np.int32(self._H) + heads).ravel()
            parts.append(whole[:missing])
            if len(whole) > missing:
                used = missing % self._H
                self._split_groups[int(groups[-1])] = ((1 << self._H) - 1) >> used << used
                self._num_loose_pages += self._H - used
        return np.concatenate(parts)

    # Owners ---------------------------------------------------------------------------------------------------------

    def ref(self, base: int, run: int) -> None:
        """One more owner for the pages ``base .. base + run - 1``, which must be in use."""
        self.refs[base : base + run] += 1

    def ref_runs(self, runs: Int32s, run: int) -> None:
        """One more owner for every page of these runs, which must differ from each other."""
        self.refs.reshape(-1, run)[runs // run] += 1

    def unref(self, base: int, run: int) -> None:
        """One owner less; pages without owners are free again."""
        self.unref_runs(np.array([base], np.int32), run)

    def unref_runs(self, runs: Int32s, run: int) -> None:
        """One owner less for every page of these runs, which must differ; pages without owners are free again."""
        if not len(runs):
            return
        if run == 1 < self._P:  # a block of one page (the simulator's) needs no merging
            left = self.refs[runs] - 1
            assert left.min() >= 0, f"a page of {runs.tolist()} has no owner to take away"
            self.refs[runs] = left
            self._free_pages(runs[left == 0] if left.any() else runs)
            return
        table, rows = self.refs.reshape(-1, run), runs // run
        counts = table[rows] - 1
        assert counts.min() >= 0, f"a page of the runs {runs.tolist()} has no owner to take away"
        table[rows] = counts
        dead = counts == 0
        whole = dead.all(axis=1)
        free = self._free_block if run == self._P else self._free_group
        for unit in rows[whole].tolist():
            free(unit)
        if not whole.all() and (partly := dead & ~whole[:, None]).any():
            pages = runs[:, None] + np.arange(run, dtype=np.int32)
            self._free_pages(pages[partly])

    def free_owned(self, pages: Int32s) -> None:
        """Pages that have one owner each, who gives them up."""
        owners = self.refs[pages].tolist()  # few: as numbers they are counted faster than as an array
        assert owners.count(1) == len(owners), f"a page of {pages.tolist()} has another owner, or none"
        self.refs[pages] = 0
        self._free_pages(pages)

    def take_back(self, runs: list[int], run: int) -> None:
        """Runs that differ and whose pages have no owner any more: ``refs`` says so already."""
        if run == self._P:
            self._touched += [base // run for base in runs]
        elif run == 1:
            self._free_ids(runs)
        else:
            for base in runs:
                self._free_group(base // run)

    def shared(self, runs: Int32s, run: int) -> npt.NDArray[np.bool_]:
        """Which of these runs have a page with several owners, ``[len(runs)]``: a writer must copy those first."""
        shared: npt.NDArray[np.bool_] = np.any(self.refs.reshape(-1, run)[runs // run] > 1, axis=1)
        return shared

    def _free_pages(self, pages: Int32s) -> None:
        self._free_ids(pages.tolist())

    def _free_ids(self, pages: list[int]) -> None:
        """Merge upwards: whole blocks at once, as the pages of a column of a table are as a rule, then page by page."""
        ids, size, at = sorted(pages), self._P, 0
        while at < len(ids):
            first, last = ids[at], at + size - 1
            if first % size == 0 and last < len(ids) and ids[last] == first + size - 1:  # they differ
                self._free_block(first // size)
                at += size
            else:
                self._free_page(first)
                at += 1

    def _free_page(self, page: int) -> None:
        group, head = divmod(page, self._H)
        mask = self._split_groups.get(group, 0) | 1 << head
        if mask == (1 << self._H) - 1:
            self._num_loose_pages -= self._H - 1 if self._split_groups.pop(group, 0) else 0
            self._free_group(group)
        else:
            self._split_groups[group] = mask
            self._num_loose_pages += 1

    def _free_group(self, group: int) -> None:
        block, layer = divmod(group, self._L)
        mask = self._split_blocks.get(block, 0) | 1 << layer
        if mask == (1 << self._L) - 1:
            self._num_loose_groups -= self._L - 1 if self._split_blocks.pop(block, 0) else 0
            self._free_block(block)
        else:
            self._split_blocks[block] = mask
            self._num_loose_groups += 1

    def _free_block(self, block: int) -> None:
        self._touched.append(block)

    # Size at run time -----------------------------------------------------------------------------------------------

    def set_limit(self, num_blocks: int) -> None:
        """How many blocks it may come to; blocks in use beyond that stay until ``shrink`` takes them."""
        assert num_blocks * self._P <= MAX_PAGES, f"page ids of {num_blocks} blocks are beyond int32"
        more = num_blocks - self.max_blocks
        if more > 0:
            self.refs = np.concatenate([self.refs, np.zeros(more * self._P, np.int32)])
            self.max_blocks = num_blocks
        self.limit_blocks = num_blocks

    def next_blocks(self, num: int) -> list[int]:
        """The blocks that ``grow(num)`` would add."""
        back = min(num, len(self._retired))
        fresh = min(num - back, self.max_blocks - self._end)
        return self._retired[len(self._retired) - back :] + list(range(self._end, self._end + fresh))

    def grow(self, num: int) -> int:
        """Up to ``num`` more usable blocks; returns how many there came to be (``max_blocks`` is the end)."""
        back = min(num, len(self._retired))
        if back:
            self._given_back.extend(self._retired[-back:])
            del self._retired[-back:]
        fresh = min(num - back, self.max_blocks - self._end)
        self._end += fresh
        return back + fresh

    def shrink(self, num: int) -> list[int]:
        """Up to ``num`` wholly free blocks leave the pool: their ids, so that storage gives their bytes back."""
        used = self.give_back(num)
        if used:
            del self._given_back[-len(used) :]
        num -= len(used)
        idle = [self._given_back.pop() for _ in range(min(num, len(self._given_back)))]
        fresh = min(num - len(idle), self._end - self._next)
        self._end -= fresh
        self._retired += used + idle
        return used + idle + list(range(self._end, self._end + fresh))

    def give_back(self, num: int) -> list[int]:
        """Up to ``num`` free blocks whose bytes may be resident count as untouched now: their ids for the storage."""
        blocks = [self._touched.pop() for _ in range(min(num, len(self._touched)))]
        self._given_back += blocks
        return blocks

    def free_structures(self) -> FreeStructures:
        """The containers themselves, for the auditor: to be read only."""
        return FreeStructures(
            self._touched, self._given_back, self._retired, self._next, self._end,
            self._split_blocks, self._split_groups,
        )  # fmt: skip


class FreeStructures(NamedTuple):
    """Where a pool keeps what is free (and what is retired); blocks from ``first_unused`` on were never used."""

    touched: list[int]
    given_back: list[int]
    retired: list[int]
    first_unused: int
    end_unused: int
    split_blocks: dict[int, int]
    split_groups: dict[int, int]


def _take_bits(mask: int, num: int) -> tuple[list[int], int]:
    """The lowest ``num`` set bits of the mask (all of them if fewer) as indices, and the mask without them."""
    taken: list[int] = []
    while mask and len(taken) < num:
        low = mask & -mask
        taken.append(low.bit_length() - 1)
        mask ^= low
    return taken, mask
