"""The reader: whole runs up to what is missing, all of a text where a page is corrupt, and each lease back once."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pagoda.kv.read_back import Fetch, Page, Reader
from pagoda.kv.swap_cost import SwapCost
from pagoda.kv.tiers._base import Name
from pagoda.kv.tiers.disk import DiskTier

from .tiers.test_disk import named


class Lease:
    num_released = 0

    def release(self) -> None:
        self.num_released += 1


class World:
    """Eight pages of a text on disk, in a run of five and one of three."""

    def __init__(self, folder: Path) -> None:
        self.tier, self.cost = DiskTier(folder, 1 << 20), SwapCost(1000, 16)
        self.pages: list[tuple[Name, bytes]] = []
        for number in range(8):
            parent = self.pages[-1][0].key if self.pages else DiskTier.root_key(b"a namespace")
            self.pages.append((named(bytes([number]), parent), os.urandom(1000)))
        self.tier.write(self.pages[:5])
        self.tier.write(self.pages[5:])
        self.reader = Reader(self.tier, self.cost)

    def fetch(self) -> Fetch:
        lease: Any = Lease()
        return Fetch([], [Page(name, "disk") for name, _ in self.pages], lease)

    def read(self, fetch: Fetch) -> Fetch:
        """All that the thread does with it."""
        self.reader.put(fetch)
        self.reader.close()
        thread = threading.Thread(target=self.reader.run)
        thread.start()
        thread.join(10)
        assert fetch.ready.is_set()
        return fetch


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_text_is_read_run_by_run_and_measured(world: World) -> None:
    fetch = world.read(world.fetch())
    assert [page.raw for page in fetch.found()] == [raw for _, raw in world.pages]
    assert world.tier.stats.num_read_runs == 2
    assert world.cost.bytes_per_second["disk"] > 0


def test_it_ends_at_what_is_missing(world: World) -> None:
    world.tier.drop([world.tier._path(world.pages[5][0].key)])
    assert len(world.read(world.fetch()).found()) == 5
    assert world.tier.stats.num_read_runs == 1


def test_behind_a_corrupt_page_others_are_looked_through(world: World) -> None:
    path = world.tier._path(world.pages[1][0].key)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    fetch = world.read(world.fetch())
    assert len(fetch.found()) == 1
    assert [page.raw is None for page in fetch.pages] == [number == 1 for number in range(8)]


def test_who_gave_up_gets_nothing_and_the_lease_goes_back_once(world: World) -> None:
    early, late = world.fetch(), world.fetch()
    world.reader.cancel(early)
    assert early.lease.num_released == 0  # type: ignore[attr-defined]
    world.read(early)
    assert (early.found(), early.lease.num_released) == ([], 1)  # type: ignore[attr-defined]
    world.read(late)
    world.reader.cancel(late)
    assert late.lease.num_released == 1  # type: ignore[attr-defined]
