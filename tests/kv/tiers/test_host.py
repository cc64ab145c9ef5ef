"""The host tier: records in memory within a byte budget, pins and the least recently used, a disk behind."""

from __future__ import annotations

import os
from pathlib import Path

from pagoda.kv.tiers.disk import DiskTier
from pagoda.kv.tiers.host import HostTier

from .test_disk import KEY, RAW, ROOT, TOKENS


def fill(tier: HostTier, number: int) -> bytes:
    tokens = bytes([number]) * 8
    key = tier.child_key(ROOT, tokens)
    assert tier.write(key, ROOT, tokens, os.urandom(6000), 1)
    return key


def test_there_and_back_and_only_under_its_name() -> None:
    host = HostTier(1 << 20)
    assert host.write(KEY, ROOT, TOKENS, RAW, 4)
    assert host.write(KEY, ROOT, TOKENS, RAW, 4)  # once
    assert host.stats.num_writes == 1
    assert host.read(KEY, ROOT, TOKENS, len(RAW)) == RAW
    assert host.read(KEY, ROOT, TOKENS, None) == RAW
    assert host.read(ROOT, ROOT, TOKENS, len(RAW)) is None
    assert host.read(KEY, ROOT, TOKENS, len(RAW) - 4) is None  # not what was asked for: it leaves
    assert (host.used_bytes, host.stats.num_corrupt, host.has(KEY)) == (0, 1, False)


def test_the_least_recently_used_leave_and_pinned_ones_last() -> None:
    now = [0.0]
    host = HostTier(20_000, clock=lambda: now[0])
    first, second, third = (fill(host, number) for number in range(3))
    assert host.read(first, ROOT, bytes(8), 6000)
    fourth = fill(host, 3)
    assert [host.has(key) for key in (first, second, third, fourth)] == [True, False, True, True]
    assert host.pin(third, 10.0)
    assert not host.pin(second, 10.0)
    fill(host, 4)
    assert host.has(third)
    now[0] = 11.0  # the pin's time is over
    for number in range(5, 8):
        fill(host, number)
    assert not host.has(third)
    assert host.used_bytes <= 20_000
    assert not host.write(KEY, ROOT, TOKENS, os.urandom(30_000), 1)


def test_a_disk_behind_has_what_left(tmp_path: Path) -> None:
    host = HostTier(7000, behind=DiskTier(tmp_path, 1 << 20))
    host.write(KEY, ROOT, TOKENS, RAW, 4)
    fill(host, 1)
    assert host.used_bytes < 7000
    assert host.has(KEY)
    assert host.read(KEY, ROOT, TOKENS, len(RAW)) == RAW
    assert host.behind is not None
    assert host.behind.stats.num_hits == 1
    host.refuse(KEY)
    assert not host.has(KEY)
