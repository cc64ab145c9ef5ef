"""The disk tier: what goes in comes out or is a miss; a full, failing, corrupt or shared disk never does worse."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pagoda.core.errors import ConfigError
from pagoda.kv.tiers._files import Files
from pagoda.kv.tiers.disk import REST_SECONDS, VERSION, DiskTier
from tests.page_cache import drop, in_page_cache

TOKENS = np.arange(16, dtype=np.int32).tobytes()
ROOT = DiskTier.root_key(b"a namespace")
KEY = DiskTier.child_key(ROOT, TOKENS)
RAW = np.random.default_rng(0).standard_normal(4096).astype(np.float32).tobytes()


class FailingFiles(Files):
    """Fails whatever is named in ``failing`` with ``error``."""

    def __init__(self, *failing: str, error: int = errno.EIO) -> None:
        self.failing, self.error = set(failing), error

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise OSError(self.error, os.strerror(self.error))

    def read(self, path: Path) -> bytes:
        self._fail("read")
        return super().read(path)

    def write_whole(self, path: Path, parts: list[bytes]) -> None:
        self._fail("write")
        super().write_whole(path, parts)

    def touch(self, path: Path, used_at: float | None = None) -> None:
        self._fail("touch")
        super().touch(path, used_at)

    def remove(self, path: Path) -> None:
        self._fail("remove")
        super().remove(path)


def stored(folder: Path) -> Path:
    """The one record's file."""
    (path,) = (folder / VERSION).rglob("*.kv")
    return path


def tier(folder: Path, budget: int = 1 << 20, **options: object) -> DiskTier:
    return DiskTier(folder, budget, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_there_and_back_also_in_another_process(tmp_path: Path, itemsize: int) -> None:
    assert tier(tmp_path).write(KEY, ROOT, TOKENS, RAW, itemsize)
    again = tier(tmp_path)
    assert again.has(KEY)
    assert again.read(KEY, ROOT, TOKENS, len(RAW)) == RAW
    assert again.used_bytes == stored(tmp_path).stat().st_size


def test_nothing_of_a_record_stays_in_the_page_cache(tmp_path: Path) -> None:
    """A control group would count it as ours, beside the budget."""
    (tmp_path / "kept").write_bytes(RAW)
    drop(tmp_path / "kept")
    if in_page_cache(tmp_path / "kept"):
        pytest.skip("this file system is memory")
    disk = tier(tmp_path)
    assert disk.write(KEY, ROOT, TOKENS, RAW, 4)
    assert in_page_cache(stored(tmp_path)) == 0
    assert disk.read(KEY, ROOT, TOKENS, len(RAW)) == RAW
    assert in_page_cache(stored(tmp_path)) == 0


def test_zeros_take_little_and_noise_no_more_than_itself(tmp_path: Path) -> None:
    disk = tier(tmp_path)
    disk.write(KEY, ROOT, TOKENS, bytes(1 << 16), 2)
    assert disk.used_bytes < 1000
    other = DiskTier.child_key(KEY, TOKENS)
    disk.write(other, KEY, TOKENS, os.urandom(1 << 16), 1)
    assert disk.used_bytes < (1 << 16) + 2000


@pytest.mark.parametrize("at", [0, 10, 60, 120, -40, -1])
def test_a_changed_byte_is_a_miss_and_the_record_leaves(tmp_path: Path, at: int) -> None:
    disk = tier(tmp_path)
    disk.write(KEY, ROOT, TOKENS, RAW, 4)
    data = bytearray(stored(tmp_path).read_bytes())
    data[at] ^= 1
    stored(tmp_path).write_bytes(data)
    assert disk.verify()
    assert disk.read(KEY, ROOT, TOKENS, len(RAW)) is None
    assert (disk.stats.num_corrupt, disk.has(KEY)) == (1, False)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_record_cut_short_is_a_miss(tmp_path: Path, size: int) -> None:
    disk = tier(tmp_path)
    disk.write(KEY, ROOT, TOKENS, RAW, 4)
    stored(tmp_path).write_bytes(stored(tmp_path).read_bytes()[:size])
    assert disk.read(KEY, ROOT, TOKENS, len(RAW)) is None


def test_a_record_under_another_name_is_a_miss(tmp_path: Path) -> None:
    """Renamed by hand, or a colliding hash: the content says what it is."""
    disk = tier(tmp_path)
    disk.write(KEY, ROOT, TOKENS, RAW, 4)
    other = DiskTier.child_key(ROOT, TOKENS[::-1])
    (disk._path(other).parent).mkdir(parents=True, exist_ok=True)
    stored(tmp_path).rename(disk._path(other))
    assert disk.read(other, ROOT, TOKENS[::-1], len(RAW)) is None
    assert DiskTier.root_key(b"another namespace") != ROOT


def test_the_least_recently_used_leave_when_it_is_full(tmp_path: Path) -> None:
    disk = tier(tmp_path, 20_000)
    keys, parent = [], ROOT
    for number in range(4):
        keys.append(DiskTier.child_key(parent, TOKENS))
        assert disk.write(keys[-1], parent, TOKENS, os.urandom(6000), 1)
        os.utime(disk._path(keys[-1]), (number, number))
        parent = keys[-1]
        if number == 2:
            assert disk.read(keys[0], ROOT, TOKENS, 6000)
            os.utime(disk._path(keys[0]), (100, 100))
    assert [disk.has(key) for key in keys] == [True, False, True, True]
    assert disk.used_bytes <= 20_000
    assert not disk.write(DiskTier.child_key(parent, b"large"), parent, b"large", os.urandom(30_000), 1)


def test_what_is_old_leaves_and_so_do_forgotten_temporary_files(tmp_path: Path) -> None:
    now = [1000.0]
    disk = tier(tmp_path, ttl=60.0, clock=lambda: now[0])
    disk.write(KEY, ROOT, TOKENS, RAW, 4)
    os.utime(stored(tmp_path), (1000, 1000))
    forgotten = stored(tmp_path).with_name(".x.kv.99.tmp")
    forgotten.write_bytes(b"half")
    os.utime(forgotten, (1000, 1000))
    now[0] = 1050.0
    assert disk.collect() == 0
    now[0] = 1700.0
    assert disk.collect() == 2
    assert (disk.used_bytes, disk.has(KEY)) == (0, False)


def test_a_full_disk_costs_nothing_but_the_record(tmp_path: Path) -> None:
    now, files = [0.0], FailingFiles("write", error=errno.ENOSPC)
    disk = tier(tmp_path, files=files, clock=lambda: now[0])
    assert not disk.write(KEY, ROOT, TOKENS, RAW, 4)
    files.failing.clear()
    assert not disk.write(KEY, ROOT, TOKENS, RAW, 4), "it rests after an error"
    now[0] = REST_SECONDS + 1
    assert disk.write(KEY, ROOT, TOKENS, RAW, 4)
    assert disk.stats.num_errors == 1


def test_a_really_full_disk_leaves_no_half_record(tmp_path: Path) -> None:
    """Writes that end early (RLIMIT_FSIZE stands for the full disk): nothing under the record's name, no temporary."""
    code = (
        "import resource, signal, sys; from tests.kv.tiers.test_disk import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "assert not tier(Path(sys.argv[1])).write(KEY, ROOT, TOKENS, RAW, 4)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not [path for path in (tmp_path / VERSION).rglob("*") if path.is_file()]


@pytest.mark.parametrize("failing", ["read", "touch", "remove"])
def test_a_failing_disk_is_a_miss_at_worst(tmp_path: Path, failing: str) -> None:
    files = FailingFiles()
    disk = tier(tmp_path, files=files)
    disk.write(KEY, ROOT, TOKENS, RAW, 4)
    files.failing.add(failing)
    found = disk.read(KEY, ROOT, TOKENS, len(RAW))
    assert found == (None if failing == "read" else RAW)
    disk.collect(room=1 << 20)
    assert disk.stats.num_errors > 0


def test_two_processes_share_one_folder(tmp_path: Path) -> None:
    one, two = tier(tmp_path), tier(tmp_path)
    assert one.write(KEY, ROOT, TOKENS, RAW, 4)
    assert two.write(KEY, ROOT, TOKENS, RAW, 4)
    assert two.stats.num_writes == 0
    one.drop([stored(tmp_path)])
    assert two.read(KEY, ROOT, TOKENS, len(RAW)) is None


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"kv_dir .*file.* cannot be used \(Not a directory\)"):
        tier(tmp_path / "file" / "inner")


def test_a_pin_outlives_others_and_its_age_but_not_the_budget(tmp_path: Path) -> None:
    now = [1000.0]
    disk = tier(tmp_path, 20_000, ttl=60.0, clock=lambda: now[0])
    keys = [DiskTier.child_key(ROOT, bytes([n])) for n in range(5)]
    for number in range(3):
        disk.write(keys[number], ROOT, bytes([number]), os.urandom(6000), 1)
        os.utime(disk._path(keys[number]), (1000 + number, 1000 + number))
    assert disk.pin(keys[0], 2000.0)
    assert disk.pin(keys[0], 1500.0)  # the longer time stays
    assert not disk.pin(keys[3], 2000.0)
    assert disk.read(keys[0], ROOT, bytes([0]), 6000)  # which is no use that would unpin it
    disk.write(keys[3], ROOT, bytes([3]), os.urandom(6000), 1)
    assert [disk.has(key) for key in keys[:4]] == [True, False, True, True]
    now[0] = 1900.0
    os.utime(disk._path(keys[3]), (1003, 1003))
    assert disk.collect() == 2  # all but the pinned one are too old
    assert disk.has(keys[0])
    assert disk.repin(1900.0, least=1900.0) == 1
    disk.budget_bytes = 0
    disk.collect()
    assert not disk.has(keys[0])
