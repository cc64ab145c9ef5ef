"""The host tier: records in memory within a byte budget, pins and the least recently used, a disk behind."""

from __future__ import annotations

import os
from pathlib import Path

from pagoda.kv.tiers._form import ExactForm
from pagoda.kv.tiers.codecs._form import CodedForm
from pagoda.kv.tiers.codecs.base import parse_page_codec
from pagoda.kv.tiers.disk import DiskTier
from pagoda.kv.tiers.host import HostTier

from .test_disk import NAME, RAW, named, text_of
from .test_page_codecs import block, fmt


def fill(tier: HostTier, number: int) -> bytes:
    name = named(bytes([number]) * 8)
    assert tier.write([(name, os.urandom(6000))])
    return name.key


def test_there_and_back_and_only_under_its_name() -> None:
    host = HostTier(1 << 20)
    assert host.write([(NAME, RAW)])
    assert host.write([(NAME, RAW)])  # once
    assert host.stats.num_writes == 1
    assert host.read([NAME]) == [RAW]
    assert host.read([named(b"another")]) == [None]
    host.form = ExactForm(4, len(RAW) - 4)
    assert host.read([NAME]) == [None]  # not what was asked for: it leaves
    assert (host.used_bytes, host.stats.num_corrupt, host.has(NAME.key)) == (0, 1, False)


def test_the_least_recently_used_leave_and_pinned_ones_last() -> None:
    now = [0.0]
    host = HostTier(20_000, clock=lambda: now[0])
    first, second, third = (fill(host, number) for number in range(3))
    assert host.read([named(bytes(8))])[0]
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
    assert not host.write([(NAME, os.urandom(30_000))])


def test_a_disk_behind_has_what_left(tmp_path: Path) -> None:
    host = HostTier(7000, behind=DiskTier(tmp_path, 1 << 20))
    host.write([(NAME, RAW)])
    key = fill(host, 1)
    assert host.used_bytes < 7000
    assert (host.where(NAME.key), host.where(key), host.where(b"neither")) == ("disk", "host", None)
    assert host.read([NAME]) == [RAW]
    assert host.behind is not None
    assert host.behind.stats.num_hits == 1


def test_each_tier_has_its_own_form(tmp_path: Path) -> None:
    """Exact in memory, smaller on disk; what is in memory is read there."""
    of = fmt()
    codec = parse_page_codec("cachegen")
    assert codec is not None
    pages = [(name, block(of, seed)) for seed, (name, _) in enumerate(text_of(4))]
    names = [name for name, _ in pages]
    host = HostTier(1 << 20, behind=DiskTier(tmp_path, 1 << 20))
    assert host.behind is not None
    host.form, host.behind.form = ExactForm(2, of.block_bytes), CodedForm(codec, of)
    assert host.write(pages) == 4
    assert host.read(names) == [raw for _, raw in pages]
    assert host.behind.used_bytes < host.used_bytes / 2
    small = HostTier(host.used_bytes // 3, behind=host.behind)
    assert small.read(names) == [codec.unpack(codec.pack(raw, of), of) for _, raw in pages]
    assert host.behind.stats.num_read_runs == 1
