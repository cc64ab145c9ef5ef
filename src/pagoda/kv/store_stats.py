"""What is counted of all stores together, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .offload.storage import OffloadedStorage
from .stats import KVStats
from .store import Store


def stats_of(default: Store, by_dtype: Mapping[str, Store], offloaded: Store | None) -> dict[str, Any]:
    """The counters of the engine's own format, with bytes, sequences, events and prefix hits of all formats added up,
    ``formats``: bytes and sequences of each, and ``offload``: of the lower tier, or None.
    """
    each = {name: store.manager.stats() for name, store in by_dtype.items()}
    far = None if offloaded is None else offloaded.manager.stats()
    everywhere = [*each.values(), *([] if far is None else [far])]
    total = asdict(default.manager.stats())
    for name in ("num_sequences", "num_copied_pages", "num_dropped_slots", "num_refined_tables"):
        total[name] = sum(getattr(one, name) for one in everywhere)
    total["prefix"] = {name: sum(asdict(one.prefix)[name] for one in everywhere) for name in total["prefix"]}
    return total | {
        "used_bytes": sum(one.used_bytes for one in each.values()),
        "touched_bytes": sum(one.touched_bytes for one in each.values()),
        "idle_prefix_bytes": sum(one.num_idle_entries * one.block_bytes for one in each.values()),
        "offload": _offloaded(offloaded, far),
        "formats": {
            name: {
                "bytes_per_token": one.block_bytes // default.fmt.page_size,
                "used_bytes": one.used_bytes,
                "leased_bytes": one.capacity_bytes,
                "num_sequences": one.num_sequences,
            }
            for name, one in each.items()
        },
    }


def _offloaded(store: Store | None, far: KVStats | None) -> dict[str, Any] | None:
    if store is None or far is None:
        return None
    assert isinstance(store.storage, OffloadedStorage)
    return {"used_bytes": far.used_bytes, "num_sequences": far.num_sequences} | store.storage.stats()
