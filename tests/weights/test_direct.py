from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from pagoda.core.errors import WeightsError
from pagoda.weights.ahead import ReadAhead
from pagoda.weights.direct import ALIGN, DirectFile, aligned_buffer, span_bytes
from tests.page_cache import drop, in_page_cache


def content(num_bytes: int) -> bytes:
    return (
        torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        .numpy()
        .tobytes()
    )


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    ("offset", "num_bytes"), [(0, 1), (1, 4096), (4095, 2), (4096, 4096), (70001, 129999), (0, 200000)]
)
def test_any_range(tmp_path: Path, use_cache: bool, offset: int, num_bytes: int) -> None:
    raw = content(200000)
    (tmp_path / "x").write_bytes(raw)
    file = DirectFile(tmp_path / "x", use_cache=use_cache)
    got = file.read(offset, num_bytes, aligned_buffer(span_bytes(num_bytes)), "it")
    file.close()
    assert got.numpy().tobytes() == raw[offset : offset + num_bytes]


def test_past_the_end_names_what(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content(10000))
    for use_cache in (False, True):
        file = DirectFile(tmp_path / "x", use_cache=use_cache)
        with pytest.raises(WeightsError, match="x: tensor 'a' ends early"):
            file.read(6000, 9000, aligned_buffer(span_bytes(9000)), "tensor 'a'")
        file.close()
    with pytest.raises(WeightsError, match="cannot be read"):
        DirectFile(tmp_path / "none")


@pytest.mark.parametrize("use_cache", [False, True])
def test_reading_leaves_nothing_in_the_page_cache(tmp_path: Path, use_cache: bool) -> None:
    """Nor does a look for what is there, after which newer kernels read ahead."""
    file = tmp_path / "x"
    file.write_bytes(content(64 * ALIGN))
    drop(file)
    if in_page_cache(file):
        pytest.skip("this file system keeps its pages")
    reader = DirectFile(file, use_cache=use_cache)
    reader.read(0, 64 * ALIGN, aligned_buffer(span_bytes(64 * ALIGN)), "it")
    reader.close()
    assert in_page_cache(file) == 0


def test_a_cold_file_is_read_once(tmp_path: Path) -> None:
    """The look into the page cache is answered by reading 8 MiB where 8 MiB are asked for at once."""
    if not Path("/proc/self/io").exists():
        pytest.skip("this system does not count what a process reads")
    file, size = tmp_path / "x", 16 << 20
    file.write_bytes(bytes(size))
    drop(file)
    reader, buffer, before = DirectFile(file, use_cache=True), aligned_buffer(span_bytes(size)), bytes_read()
    reader.read(0, size, buffer, "it")
    reader.close()
    if (read := bytes_read() - before) == 0:
        pytest.skip("this file system reads nothing from a disk")
    assert size <= read <= size + (4 << 20)


def bytes_read() -> int:
    """Of this process, from disks."""
    return next(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if "read_bytes" in line)


def test_a_file_system_without_direct_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = content(50000)
    (tmp_path / "x").write_bytes(raw)
    file = DirectFile(tmp_path / "x")
    real = os.preadv
    direct = file._direct

    def refusing(fd: int, *args: object) -> int:
        if fd == direct:
            raise OSError(22, "Invalid argument")
        return real(fd, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", refusing)
    assert file.read(100, 40000, aligned_buffer(span_bytes(40000)), "it").numpy().tobytes() == raw[100:40100]
    assert file._direct == -1
    file.close()


def fill(index: int, buffer: torch.Tensor) -> None:
    time.sleep(0.001 * (index % 3))
    buffer.fill_(index % 251)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("room", [100, 130, 1000])
def test_groups_come_whole_and_in_order(room: int, num_threads: int) -> None:
    sizes = [40, 100, 1, 60, 60, 60, 99, 3, 30, 30, 30, 30, 100, 0, 7]
    ahead = ReadAhead(sizes, torch.zeros(room, dtype=torch.uint8), fill, num_threads=num_threads)
    seen = []
    for number, part in enumerate(ahead):
        time.sleep(0.001 * (number % 2))
        assert part.shape[0] == sizes[number]
        assert (part == number % 251).all()
        seen.append(number)
    ahead.close()
    assert seen == list(range(len(sizes)))


def test_over_and_over_with_several_in_hand() -> None:
    sizes = [30, 50, 20]
    ahead = ReadAhead(sizes, torch.zeros(100, dtype=torch.uint8), fill, repeat=True, num_threads=2)
    for _ in range(20):
        taken = [ahead.take(), ahead.take()]
        assert all((part == group).all() for group, part in taken)
        ahead.give_back()
        ahead.give_back()
    assert [ahead.take()[0]] == [1]
    ahead.close()
    assert not any(thread.is_alive() for thread in ahead._threads)


def test_an_error_reaches_the_consumer_after_what_was_good() -> None:
    def failing(index: int, buffer: torch.Tensor) -> None:
        if index == 2:
            raise WeightsError("disk on fire")
        fill(index, buffer)

    ahead = ReadAhead([10, 10, 10, 10], torch.zeros(40, dtype=torch.uint8), failing)
    assert [ahead.take()[0], ahead.take()[0]] == [0, 1]
    for _ in range(2):
        with pytest.raises(WeightsError, match="disk on fire"):
            ahead.take()
    ahead.close()


def test_closing_early_ends_the_thread() -> None:
    ahead = ReadAhead([60, 60, 60], torch.zeros(60, dtype=torch.uint8), fill)
    ahead.take()
    ahead.close()
    ahead.close()
    assert not any(thread.is_alive() for thread in ahead._threads)
