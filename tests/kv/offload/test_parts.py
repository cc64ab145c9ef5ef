"""What offloaded KV is made of: runs of a file, places of pages in it, and pages that stay in the window."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.core.types import KVFormat
from pagoda.kernels.file_runs import move_runs, move_runs_plainly
from pagoda.kv.offload.hot import HotPages
from pagoda.kv.offload.storage import OffloadedStorage
from pagoda.kv.offload.tier_file import SPAN, TierFile, runs_of

FMT = KVFormat(num_layers=2, num_kv_heads=3, k_dim=8, v_dim=8, page_size=8, dtype="float32")


@pytest.mark.parametrize("move", [move_runs, move_runs_plainly])
def test_runs_go_there_and_back_and_failures_are_named(tmp_path: Path, move) -> None:
    data, back = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    sizes, at = np.array([16, 8, 40]), np.array([0, 16, 24])
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        places = np.array([100, 0, 8])
        assert move(file.fileno(), places, sizes, data.ctypes.data + at, writes=True) == []
        assert move(file.fileno(), places, sizes, back.ctypes.data + at, writes=False) == []
        assert (back == data).all()
        beyond = np.array([100, 1000, 8])
        assert move(file.fileno(), beyond, sizes, back.ctypes.data + at, writes=False) == [(1, errno.ENODATA)]
    with open(tmp_path / "file", "rb", buffering=0) as file:
        failed = move(file.fileno(), places, sizes, data.ctypes.data + at, writes=True)
        assert failed == [(run, errno.EBADF) for run in range(3)]


def test_pages_of_one_head_lie_side_by_side_and_no_two_in_one_place() -> None:
    num = 2 * SPAN + 5
    tier = TierFile(FMT, num, None)
    try:
        places = tier.places(np.arange(num * FMT.pages_per_block, dtype=np.int32))
        assert len(set(places.tolist())) == len(places)
        assert (places % FMT.page_bytes == 0).all()
        assert places.max() + FMT.page_bytes <= os.fstat(tier._file.fileno()).st_size
        first, _, sizes = runs_of(tier.places(np.arange(num) * FMT.pages_per_block + 4), FMT.page_bytes)
        assert first.tolist() == [0, SPAN, 2 * SPAN]
        assert sizes.tolist() == [SPAN * FMT.page_bytes, SPAN * FMT.page_bytes, 5 * FMT.page_bytes]
    finally:
        tier.close()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "fallocate"), reason="holes in files are Linux's")
def test_freed_blocks_read_as_zeros_and_their_neighbours_as_before(tmp_path: Path) -> None:
    """A whole span and parts of two: nothing else changes, and the file system has the bytes back."""
    fmt = KVFormat(num_layers=1, num_kv_heads=2, k_dim=64, v_dim=64, page_size=8, dtype="float32")  # pages of 4 KiB
    tier = TierFile(fmt, 3 * SPAN, tmp_path)
    try:
        ids = np.arange(3 * SPAN * 2)
        data = (np.arange(len(ids) * fmt.page_bytes, dtype=np.int64) // 97 % 251 + 1).astype(np.uint8)
        sizes, back = np.full(len(ids), fmt.page_bytes), np.zeros_like(data)
        at = data.ctypes.data + np.arange(len(ids)) * fmt.page_bytes
        assert tier.move(tier.places(ids), sizes, at, writes=True) == []
        os.fsync(tier._file.fileno())
        before = os.fstat(tier._file.fileno()).st_blocks
        gone = [*range(SPAN - 3, 2 * SPAN + 5), 2 * SPAN + 9]
        assert tier.give_back(gone) == len(gone) * fmt.block_bytes
        at = back.ctypes.data + np.arange(len(ids)) * fmt.page_bytes
        assert tier.move(tier.places(ids), sizes, at, writes=False) == []
        dead = np.isin(ids // 2, gone)
        assert not back.reshape(len(ids), -1)[dead].any()
        assert (back.reshape(len(ids), -1)[~dead] == data.reshape(len(ids), -1)[~dead]).all()
        freed = (before - os.fstat(tier._file.fileno()).st_blocks) * 512
        assert freed == pytest.approx(len(gone) * fmt.block_bytes, abs=1 << 14), "but for the file system's own lists"
    finally:
        tier.close()


def test_a_folder_that_cannot_be_used_or_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        TierFile(FMT, 4, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="free; ask for less"):
        TierFile(FMT, 1 << 40, tmp_path)


def test_hot_pages_hold_what_was_used_last_layer_by_layer() -> None:
    """Against a plain model of the same: a page found where it was is a hit, whoever came between."""
    rng, hot = np.random.default_rng(0), HotPages(400, 3, first=10, per_layer=8, spill_first=2, spill=8)
    there: dict[int, int] = {}  # place -> page
    for _ in range(300):
        layer = int(rng.integers(3))
        ids = rng.choice(np.arange(layer, 90, 3), size=rng.integers(1, 15), replace=False)
        places, missing = hot.take(layer, ids)
        assert len(set(places.tolist())) == len(ids)
        inside = (places >= 10 + 8 * layer) & (places < 18 + 8 * layer)
        assert (inside | ((places >= 2) & (places < 10))).all()
        found = np.setdiff1d(np.arange(len(ids)), missing)
        assert all(there[int(places[i])] == int(ids[i]) for i in found)
        there |= {int(places[i]): int(ids[i]) for i in missing}
        if rng.random() < 0.2:
            gone = rng.choice(ids, size=1)
            hot.forget(gone)
            _, missing = hot.take(layer, gone)
            assert len(missing) == 1
            there = {place: page for place, page in there.items() if page != int(gone[0])}
            hot.forget(gone)
    assert hot.num_hits > 300


def test_keys_of_pages_come_from_the_tier_and_not_from_the_window() -> None:
    storage = OffloadedStorage(FMT, TierFile(FMT, 4, None), 8 * FMT.page_bytes, longest=8)
    try:
        ids, at = np.array([20, 3, 0]), np.arange(3)  # pages of the tier; the window has twelve
        storage.pages[:3].normal_()
        written = storage.pages[:3].clone()
        assert storage.put_back(ids, at) == {}
        storage.pages.zero_()
        keys = storage.keys(torch.from_numpy(ids)[:, None])
        assert torch.equal(keys, written[:, : FMT.page_size * FMT.k_dim].view(3, FMT.page_size, FMT.k_dim))
        assert torch.equal(keys, storage.gather(torch.from_numpy(ids)[:, None])[0])
    finally:
        storage.close()
