"""The disk tier: what goes in comes out or is a miss; a full, failing, corrupt or shared disk never does worse."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pagoda.core.errors import ConfigError
from pagoda.kv.tiers._base import Name
from pagoda.kv.tiers._files import Files
from pagoda.kv.tiers._form import ExactForm
from pagoda.kv.tiers.disk import REST_SECONDS, VERSION, DiskTier
from tests.page_cache import drop, in_page_cache

TOKENS = np.arange(16, dtype=np.int32).tobytes()
ROOT = DiskTier.root_key(b"a namespace")
NAME = Name(DiskTier.child_key(ROOT, TOKENS), ROOT, TOKENS)
RAW = np.random.default_rng(0).standard_normal(4096).astype(np.float32).tobytes()


class FailingFiles(Files):
    """Fails whatever is named in ``failing`` with ``error``."""

    def __init__(self, *failing: str, error: int = errno.EIO) -> None:
        self.failing, self.error = set(failing), error

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise OSError(self.error, os.strerror(self.error))

    def read(self, path: Path, choose: Callable[[bytes], tuple[int, int]] | None = None) -> bytes:
        self._fail("read")
        return super().read(path, choose)

    def write_whole(self, paths: Sequence[Path], parts: list[bytes]) -> None:
        self._fail("write")
        super().write_whole(paths, parts)

    def check_links(self, folder: Path) -> None:
        self._fail("link")
        super().check_links(folder)

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


def named(tokens: bytes, parent: bytes = ROOT) -> Name:
    return Name(DiskTier.child_key(parent, tokens), parent, tokens)


def text_of(count: int, *, size: int = 3000) -> list[tuple[Name, bytes]]:
    """Pages that follow each other."""
    run: list[tuple[Name, bytes]] = []
    for number in range(count):
        name = named(bytes([number]) * 8, run[-1][0].key if run else ROOT)
        run.append((name, os.urandom(size)))
    return run


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_there_and_back_also_in_another_process(tmp_path: Path, itemsize: int) -> None:
    form = ExactForm(itemsize, len(RAW))
    first = tier(tmp_path)
    first.form = form
    assert first.write([(NAME, RAW)])
    again = tier(tmp_path)
    again.form = form
    assert again.has(NAME.key)
    assert again.read([NAME]) == [RAW]
    assert again.used_bytes == stored(tmp_path).stat().st_size


def test_nothing_of_a_record_stays_in_the_page_cache(tmp_path: Path) -> None:
    """A control group would count it as ours, beside the budget."""
    (tmp_path / "kept").write_bytes(RAW)
    drop(tmp_path / "kept")
    if in_page_cache(tmp_path / "kept"):
        pytest.skip("this file system is memory")
    disk = tier(tmp_path)
    assert disk.write([(NAME, RAW)])
    assert in_page_cache(stored(tmp_path)) == 0
    assert disk.read([NAME]) == [RAW]
    assert in_page_cache(stored(tmp_path)) == 0


def test_zeros_take_little_and_noise_no_more_than_itself(tmp_path: Path) -> None:
    disk = tier(tmp_path)
    disk.write([(NAME, bytes(1 << 16))])
    assert disk.used_bytes < 1000
    disk.write([(named(TOKENS, NAME.key), os.urandom(1 << 16))])
    assert disk.used_bytes < (1 << 16) + 2000


@pytest.mark.parametrize("at", [0, 10, 60, 120, -40, -1])
def test_a_changed_byte_is_a_miss_and_the_record_leaves(tmp_path: Path, at: int) -> None:
    disk = tier(tmp_path)
    disk.write([(NAME, RAW)])
    data = bytearray(stored(tmp_path).read_bytes())
    data[at] ^= 1
    stored(tmp_path).write_bytes(data)
    assert disk.verify()
    assert disk.read([NAME]) == [None]
    assert (disk.stats.num_corrupt, disk.has(NAME.key)) == (1, False)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_record_cut_short_is_a_miss(tmp_path: Path, size: int) -> None:
    disk = tier(tmp_path)
    disk.write([(NAME, RAW)])
    stored(tmp_path).write_bytes(stored(tmp_path).read_bytes()[:size])
    assert disk.read([NAME]) == [None]


def test_a_record_under_another_name_is_a_miss(tmp_path: Path) -> None:
    """Renamed by hand, or a colliding hash: the content says what it is."""
    disk = tier(tmp_path)
    disk.write([(NAME, RAW)])
    other = named(TOKENS[::-1])
    (disk._path(other.key).parent).mkdir(parents=True, exist_ok=True)
    stored(tmp_path).rename(disk._path(other.key))
    assert disk.read([other]) == [None]
    assert DiskTier.root_key(b"another namespace") != ROOT


def test_the_least_recently_used_leave_when_it_is_full(tmp_path: Path) -> None:
    disk = tier(tmp_path, 20_000)
    pages = text_of(4, size=6000)
    names = [name for name, _ in pages]
    for number, page in enumerate(pages):
        assert disk.write([page])
        os.utime(disk._path(page[0].key), (number, number))
        if number == 2:
            assert disk.read(names[:1])[0]
            os.utime(disk._path(names[0].key), (100, 100))
    assert [disk.has(name.key) for name in names] == [True, False, True, True]
    assert disk.used_bytes <= 20_000
    assert not disk.write([(named(b"large"), os.urandom(30_000))])


def test_what_is_old_leaves_and_so_do_forgotten_temporary_files(tmp_path: Path) -> None:
    now = [1000.0]
    disk = tier(tmp_path, ttl=60.0, clock=lambda: now[0])
    disk.write([(NAME, RAW)])
    os.utime(stored(tmp_path), (1000, 1000))
    forgotten = stored(tmp_path).with_name(f".{NAME.key.hex()}.kv.99.tmp")
    forgotten.write_bytes(b"half")
    os.utime(forgotten, (1000, 1000))
    now[0] = 1050.0
    assert disk.collect() == 0
    now[0] = 1700.0
    assert disk.collect() == 2
    assert (disk.used_bytes, disk.has(NAME.key)) == (0, False)


def test_a_full_disk_costs_nothing_but_the_record(tmp_path: Path) -> None:
    now, files = [0.0], FailingFiles("write", error=errno.ENOSPC)
    disk = tier(tmp_path, files=files, clock=lambda: now[0])
    assert not disk.write([(NAME, RAW)])
    files.failing.clear()
    assert not disk.write([(NAME, RAW)]), "it rests after an error"
    now[0] = REST_SECONDS + 1
    assert disk.write([(NAME, RAW)])
    assert disk.stats.num_errors == 1


def test_a_really_full_disk_leaves_no_half_record(tmp_path: Path) -> None:
    """Writes that end early (RLIMIT_FSIZE stands for the full disk): nothing under the record's name, no temporary."""
    code = (
        "import resource, signal, sys; from tests.kv.tiers.test_disk import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "assert not tier(Path(sys.argv[1])).write([(NAME, RAW)])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not [path for path in (tmp_path / VERSION).rglob("*") if path.is_file()]


@pytest.mark.parametrize("failing", ["read", "touch", "remove"])
def test_a_failing_disk_is_a_miss_at_worst(tmp_path: Path, failing: str) -> None:
    files = FailingFiles()
    disk = tier(tmp_path, files=files)
    disk.write([(NAME, RAW)])
    files.failing.add(failing)
    assert disk.read([NAME]) == [None if failing == "read" else RAW]
    disk.collect(room=1 << 20)
    assert disk.stats.num_errors > 0


def test_two_processes_share_one_folder(tmp_path: Path) -> None:
    one, two = tier(tmp_path), tier(tmp_path)
    assert one.write([(NAME, RAW)])
    assert two.write([(NAME, RAW)])
    assert two.stats.num_writes == 0
    one.drop([stored(tmp_path)])
    assert two.read([NAME]) == [None]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"kv_dir .*file.* cannot be used \(Not a directory\)"):
        tier(tmp_path / "file" / "inner")


def test_a_pin_outlives_others_and_its_age_but_not_the_budget(tmp_path: Path) -> None:
    now = [1000.0]
    disk = tier(tmp_path, 20_000, ttl=60.0, clock=lambda: now[0])
    names = [named(bytes([n])) for n in range(5)]
    keys = [name.key for name in names]
    for number in range(3):
        disk.write([(names[number], os.urandom(6000))])
        os.utime(disk._path(keys[number]), (1000 + number, 1000 + number))
    assert disk.pin(keys[0], 2000.0)
    assert disk.pin(keys[0], 1500.0)  # the longer time stays
    assert not disk.pin(keys[3], 2000.0)
    assert disk.read(names[:1])[0]  # which is no use that would unpin it
    disk.write([(names[3], os.urandom(6000))])
    assert [disk.has(key) for key in keys[:4]] == [True, False, True, True]
    now[0] = 1900.0
    os.utime(disk._path(keys[3]), (1003, 1003))
    assert disk.collect() == 2  # all but the pinned one are too old
    assert disk.has(keys[0])
    assert disk.repin(1900.0, least=1900.0) == 1
    disk.budget_bytes = 0
    disk.collect()
    assert not disk.has(keys[0])


# Runs ---------------------------------------------------------------------------------------------------------------


class CountingFiles(Files):
    """Counts files written, names given and files opened for reading."""

    num_written = num_names = num_read = 0

    def read(self, path: Path, choose: Callable[[bytes], tuple[int, int]] | None = None) -> bytes:
        self.num_read += 1
        return super().read(path, choose)

    def write_whole(self, paths: Sequence[Path], parts: list[bytes]) -> None:
        self.num_written += 1
        self.num_names += len(paths)
        super().write_whole(paths, parts)


def test_a_run_is_one_file_and_one_read_and_each_page_has_its_name(tmp_path: Path) -> None:
    files = CountingFiles()
    disk, run = tier(tmp_path, files=files), text_of(10)
    assert disk.write(run) == 10
    assert (files.num_written, files.num_names, disk.stats.num_written_runs) == (1, 10, 1)
    assert disk.used_bytes == tier(tmp_path).used_bytes == disk._path(run[0][0].key).stat().st_size
    names, raws = [name for name, _ in run], [raw for _, raw in run]
    assert disk.read(names) == raws
    assert files.num_read == disk.stats.num_read_runs == 1
    assert disk.read(names[4:7]) == raws[4:7]
    other = named(b"another end", names[6].key)
    assert disk.read([*names[5:7], other]) == raws[5:7]  # the text goes on in another way
    assert disk.read([other]) == [None]
    for one in range(10):  # the plain twin: page by page
        assert disk.read(names[one : one + 1]) == raws[one : one + 1]
    read_bytes = disk.stats.read_bytes
    disk.read(names[3:4])
    assert disk.stats.read_bytes - read_bytes < 2 * 3000, "not the whole run for one page of it"


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    disk, run = tier(tmp_path), text_of(6)
    assert disk.write(run[1:3]) == 2
    assert disk.write(run) == 6
    assert disk.stats.num_writes == 6
    names = [name for name, _ in run]
    found: list[bytes | None] = []
    while len(found) < 6:
        found += disk.read(names[len(found) :])
    assert found == [raw for _, raw in run]


def test_one_wrong_record_costs_its_page_and_a_wrong_beginning_the_run(tmp_path: Path) -> None:
    disk, run = tier(tmp_path), text_of(3)
    disk.write(run)
    names, path = [name for name, _ in run], disk._path(run[0][0].key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # the second record
    path.write_bytes(data)
    assert [wrong.stem for wrong, _ in disk.verify()] == [names[1].key.hex()]
    assert disk.read(names) == [run[0][1], None, run[2][1]]
    assert [disk.has(name.key) for name in names] == [True, False, True]
    assert disk.write(run) == 3
    assert disk.read(names[1:2]) == [run[1][1]]
    data[20] ^= 1
    path.write_bytes(data)
    assert len(disk.verify()) == 2
    assert disk.read(names) == [None]
    assert not disk.has(names[0].key)


def test_a_run_leaves_as_a_whole_and_is_cut_to_a_part_of_the_budget(tmp_path: Path) -> None:
    disk = tier(tmp_path, 16 * 8000)
    first, second = text_of(2), [(named(b"other"), os.urandom(3000))]
    disk.write(first)
    os.utime(disk._path(first[1][0].key), (5, 5))
    disk.write(second)
    disk.budget_bytes = 8000
    assert disk.collect() == 2
    assert [disk.has(name.key) for name, _ in (*first, *second)] == [False, False, True]
    assert disk.used_bytes == stored(tmp_path).stat().st_size
    disk.budget_bytes = 16 * 8000
    assert disk.write(text_of(9)) == 9
    assert disk.stats.num_written_runs == 2 + 5  # two of 3000 bytes to a file


def test_the_writer_may_die_between_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has its name is whole; the rest is written again; the temporary name goes with the next sweep."""
    now, run, link = [1000.0], text_of(4), os.link

    def killed(source: Path, target: Path) -> None:
        if len(list((tmp_path / VERSION).rglob("*.kv"))) == 2:
            raise KeyboardInterrupt
        link(source, target)

    disk = tier(tmp_path, clock=lambda: now[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            disk.write(run)
    again, names = tier(tmp_path, clock=lambda: now[0]), [name for name, _ in run]
    assert [again.has(name.key) for name in names] == [True, True, False, False]
    assert again.read(names) == [raw for _, raw in run], "the file has all of it"
    assert again.write(run) == 4
    assert len(list((tmp_path / VERSION).rglob("*.tmp"))) == 1
    used, now[0] = again.used_bytes, again._clock() + 1e10
    assert tier(tmp_path, ttl=None, clock=lambda: now[0]).collect() == 1
    assert not list((tmp_path / VERSION).rglob("*.tmp"))
    assert used == tier(tmp_path).used_bytes


def test_files_of_another_version_count_and_leave_first(tmp_path: Path) -> None:
    old = tmp_path / "v1" / "ab" / f"{'ab' * 32}.kv"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(5000))
    mine = tmp_path / "v1" / "ab" / "somebody.kv"
    mine.write_bytes(bytes(5000))
    disk = tier(tmp_path, 10_000)
    assert disk.used_bytes == 5000
    disk.write([(NAME, os.urandom(3000))])
    os.utime(stored(tmp_path), (1, 1))
    assert [path for path, *_ in disk.records()] == [stored(tmp_path)]
    assert disk.write([(named(b"one more"), os.urandom(3000))])
    assert (old.exists(), mine.exists(), disk.has(NAME.key)) == (False, True, True)


def test_a_folder_without_hard_links_is_refused(tmp_path: Path) -> None:
    for _ in range(2):  # the second time the folder is there
        with pytest.raises(ConfigError, match="on a file system without hard links"):
            tier(tmp_path, files=FailingFiles("link", error=errno.EPERM))
    assert tier(tmp_path / "full", files=FailingFiles("link", error=errno.ENOSPC)).used_bytes == 0
