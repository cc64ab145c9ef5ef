"""``pagoda cache``: a folder of kept prefixes listed, verified and made smaller."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagoda.kv.tiers._base import Name
from pagoda.kv.tiers.disk import VERSION, DiskTier

from .conftest import in_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three records of 5000 bytes each, the first a month old."""
    tier, parent = DiskTier(tmp_path, 1 << 20), DiskTier.root_key(b"n")
    for number in range(3):
        tokens = bytes([number]) * 64
        key = DiskTier.child_key(parent, tokens)
        assert tier.write([(Name(key, parent, tokens), os.urandom(5000))])
        if number == 0:
            os.utime(tier._path(key), (1, 1))
        parent = key
    return tmp_path


def test_it_is_listed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = in_process(capfd, "cache", "ls", str(folder), "--json").json
    assert [row["records"] for row in data["by_last_use"]] == [0, 2, 0, 0, 1]
    assert data["records"] == 3
    assert "together" in in_process(capfd, "cache", "ls", str(folder)).out


def test_what_is_wrong_is_found_and_dropped(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert in_process(capfd, "cache", "verify", str(folder)).code == 0
    path = next((folder / VERSION).rglob("*.kv"))
    path.write_bytes(path.read_bytes()[:-1])
    done = in_process(capfd, "cache", "verify", str(folder), "--json")
    assert (done.code, [one["file"] for one in done.json["wrong"]]) == (1, [str(path)])
    assert in_process(capfd, "cache", "verify", str(folder), "--drop").code == 0
    assert in_process(capfd, "cache", "ls", str(folder), "--json").json["records"] == 2


def test_it_is_made_smaller(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert in_process(capfd, "cache", "gc", str(folder), "--older-than", "24", "--json").json["dropped"] == 1
    assert in_process(capfd, "cache", "gc", str(folder), "--disk", "7000", "--json").json["dropped"] == 1
    assert in_process(capfd, "cache", "gc", str(folder), "--disk", "0", "--json").json["bytes_after"] == 0


def test_what_was_used_lately_is_pinned_and_unpinned(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert in_process(capfd, "cache", "pin", str(folder), "--for", "48", "--json").json == {"pinned": 2}
    data = in_process(capfd, "cache", "ls", str(folder), "--json").json
    assert [row["records"] for row in data["by_last_use"]] == [2, 0, 0, 0, 1]
    assert in_process(capfd, "cache", "gc", str(folder), "--disk", "12000", "--json").json["dropped"] == 1
    assert "2 records unpinned" in in_process(capfd, "cache", "pin", str(folder), "--for", "0").out
    assert in_process(capfd, "cache", "ls", str(folder), "--json").json["by_last_use"][0]["records"] == 0
    refused = in_process(capfd, "cache", "pin", str(folder), "--for", "-1")
    assert (refused.code, "hours from 0" in refused.err) == (2, True)


def test_another_folder_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = in_process(capfd, "cache", "ls", str(tmp_path))
    assert (done.code, "keeps no prefixes" in done.err) == (2, True)
    assert not list(tmp_path.iterdir()), "looking makes nothing"
