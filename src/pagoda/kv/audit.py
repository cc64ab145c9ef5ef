"""The auditor of the KV accounting: counts every reference again from its holders, and looks at every free page.

Run in tests after each operation, by the engine when idle, and on demand. Costs time in proportion to all pages.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from .manager import KVManager
from .pages import Int32s, PagePool
from .prefix import Entry, PrefixCache
from .table import PageTable, expand_runs


def audit(manager: KVManager) -> None:
    """Raises AssertionError, naming the page, block, sequence or entry, unless everything balances."""
    audit_pool(manager.pool)
    for seq_id in manager.seq_ids():
        audit_table(seq_id, manager.table(seq_id))
    if manager.prefix is not None:
        audit_prefix(manager.prefix, manager.held_entries())
    audit_references(manager)


def audit_references(manager: KVManager) -> None:
    """Owners of every page: tables plus prefix entries."""
    pool = manager.pool
    counts = np.zeros_like(pool.refs)
    for seq_id in manager.seq_ids():
        _count(counts, manager.table(seq_id).pages(), f"the table of sequence {seq_id}")
    if manager.prefix is not None:
        for entry in manager.prefix.entries():
            _count(counts, expand_runs(entry.held_runs, entry.run, 1), f"entry {entry.key.hex()}")
    for page in np.flatnonzero(counts != pool.refs).tolist():
        raise AssertionError(f"page {page} has {counts[page]} owners, but the pool counts {pool.refs[page]}")


def _count(counts: Int32s, pages: Int32s, holder: str) -> None:
    assert len(set(pages.tolist())) == len(pages), f"a page is twice in {holder}: {sorted(pages.tolist())}"
    counts[pages] += 1


def audit_pool(pool: PagePool) -> None:
    """Every block is in one state, and a page is free exactly if it has no owner."""
    per_block, heads, layers = pool.fmt.pages_per_block, pool.fmt.num_kv_heads, pool.fmt.num_layers
    free = pool.free_structures()
    fresh = np.arange(free.first_unused, free.end_unused)
    whole = np.concatenate([np.array(free.touched, int), np.array(free.given_back, int), fresh])
    out = np.concatenate([np.array(free.retired, int), np.arange(free.end_unused, pool.max_blocks)])
    blocks = np.concatenate([whole, out])
    for block in blocks[(blocks < 0) | (blocks >= pool.max_blocks)].tolist():
        raise AssertionError(f"block {block} of {pool.max_blocks} does not exist")
    num_states = np.bincount(blocks, minlength=pool.max_blocks)
    for block in np.flatnonzero(num_states > 1).tolist():
        raise AssertionError(f"block {block} is in two states")
    is_free = np.repeat(num_states > 0, per_block)
    for block, mask in free.split_blocks.items():
        assert 0 < mask < (1 << layers) - 1, f"block {block} is split with free layers {mask:b}: none or all"
        assert not num_states[block], f"block {block} is in two states"
        for layer in _bits(mask):
            first = (block * layers + layer) * heads
            is_free[first : first + heads] = True
    for group, mask in free.split_groups.items():
        assert 0 < mask < (1 << heads) - 1, f"group {group} is split with free heads {mask:b}: none or all"
        for head in _bits(mask):
            page = group * heads + head
            assert not is_free[page], f"page {page} is free twice"
            is_free[page] = True
    for page in np.flatnonzero(is_free != (pool.refs == 0)).tolist():
        raise AssertionError(f"page {page} has {pool.refs[page]} owners and is {'' if is_free[page] else 'not '}free")
    _audit_counters(pool, len(whole), int(is_free.sum()) - len(out) * per_block, len(free.retired))


def _audit_counters(pool: PagePool, num_free_blocks: int, num_free_pages: int, num_retired: int) -> None:
    free = pool.free_structures()
    per_block, heads = pool.fmt.pages_per_block, pool.fmt.num_kv_heads
    num_groups = num_free_blocks * pool.fmt.num_layers + sum(m.bit_count() for m in free.split_blocks.values())
    # Where a layer or a page is as large as the next coarser run, that run's count answers.
    groups = num_free_blocks if heads == per_block else num_groups
    touched = pool.max_blocks - num_retired - (pool.max_blocks - free.first_unused) - len(free.given_back)
    for name, counted, kept in (
        ("free blocks", num_free_blocks, pool.num_free_blocks),
        ("free blocks as runs", num_free_blocks, pool.num_free_runs(per_block)),
        ("free groups", groups, pool.num_free_runs(heads)),
        ("free pages", num_free_pages, pool.num_free_pages),
        ("used pages", int((pool.refs > 0).sum()), pool.num_used_pages),
        ("blocks", free.end_unused - num_retired, pool.num_blocks),
        ("touched blocks", touched, pool.num_touched_blocks),
    ):
        assert counted == kept, f"{counted} {name}, but the pool counts {kept}"


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def audit_table(seq_id: int, table: PageTable) -> None:
    """Lengths, counts and room of one table agree."""
    page_size, name = table.fmt.page_size, f"sequence {seq_id}"
    written = -(-table.lens // page_size)
    for row in np.flatnonzero((table.lens < 0) | (table.counts < written)).tolist():
        raise AssertionError(f"{name}, row {row}: {table.lens[row]} slots in {table.counts[row]} pages")
    room = int((table.counts * page_size - table.lens).min())
    assert table.room == room, f"{name} has room for {room} slots, but counts {table.room}"
    dead = np.zeros_like(table.counts) if table.dead is None else table.dead
    pages = int((table.counts - dead).sum()) * table.run
    assert table.num_pages == pages, f"{name} holds {pages} pages, but counts {table.num_pages}"
    assert table.num_dead == dead.sum(), f"{name} has {dead.tolist()} dead pages, but counts {table.num_dead}"
    assert (dead * page_size <= table.lens).all(), (
        f"{name} has {dead.tolist()} dead pages of {table.lens.tolist()} slots"
    )
    columns = np.arange(table.bases.shape[1])
    beyond = (columns >= table.counts[:, None]) | (columns < dead[:, None])
    assert not table.bases[beyond].any(), f"{name} has ids beyond its {table.counts.tolist()} pages, or before them"
    if table.pristine:
        assert (table.lens == table.num_tokens).all(), f"{name}: {table.lens.tolist()} slots, {table.num_tokens} tokens"
    assert (table.lens <= table.num_tokens).all(), f"{name}: more slots than its {table.num_tokens} tokens"
    assert (table.bases[~beyond] % table.run == 0).all(), f"{name} has runs that start within a run of {table.run}"


def audit_prefix(prefix: PrefixCache, held: list[Entry]) -> None:
    """The tree: reachable, counts of children and users right, every idle leaf in line to be evicted."""
    entries = set(prefix.entries())
    users: dict[Entry, int] = {}
    for node in chain(held, prefix.pinned_entries()):
        step: Entry | None = node
        while step is not None:
            users[step] = users.get(step, 0) + 1
            step = step.parent
    children: dict[Entry, int] = {}
    for entry in entries:
        parent, name = entry.parent, entry.key.hex()
        assert parent is not None, f"root {name} is among the entries"
        assert parent in entries or prefix.is_root(parent), f"entry {name} cannot be reached"
        assert prefix.child(parent, entry.tokens) is entry, f"entry {name} is not found by its content"
        children[parent] = children.get(parent, 0) + 1
    for entry in {*entries, *users}:
        name = entry.key.hex()
        assert entry in entries or prefix.is_root(entry), f"entry {name} is in use, but gone"
        count = users.get(entry, 0)
        assert entry.users == count, f"entry {name} has {count} users, but counts {entry.users}"
    for entry in entries:
        name, count = entry.key.hex(), children.get(entry, 0)
        assert entry.num_children == count, f"entry {name} has {count} children, but counts {entry.num_children}"
        idle = not count and not entry.users
        assert prefix.in_line(entry) == idle, f"entry {name} is {'not ' if idle else ''}in line to be evicted"
    idle_entries = sum(entry not in users for entry in entries)
    assert prefix.num_idle == idle_entries, f"{idle_entries} idle entries, but the cache counts {prefix.num_idle}"
    if prefix.thinning is not None:
        prefix.thinning.audit(entries)
