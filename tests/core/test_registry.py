from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pagoda.core.errors import ConfigError
from pagoda.core.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A package with two plug-ins, a base and a private file."""
    room = tmp_path / "odd_room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "base.py").write_text("raise AssertionError('the base is no plug-in')")
    (room / "_private.py").write_text("raise AssertionError('private')")
    (room / "first.py").write_text("PLUGIN = 1")
    (room / "second.py").write_text("PLUGIN = 2")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("odd_room")]:
        monkeypatch.delitem(sys.modules, name)
    return Registry("odd_room", "oddity", "PLUGIN")


def test_the_folder_is_the_list(registry: Registry) -> None:
    assert registry.names() == ["first", "second"]
    assert "odd_room.first" not in sys.modules
    assert registry.get("second") == 2
    assert dict(registry.items()) == {"first": 1, "second": 2}


def test_an_unknown_name_lists_what_exists(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="unknown oddity 'third'; accepted: first, second"):
        registry.get("third")


def test_folders_that_the_environment_names_join_in(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [tmp_path / "mine", tmp_path / "ours"]
    inner = Registry("odd_room.inner", "oddity", "PLUGIN")
    (tmp_path / "odd_room" / "inner").mkdir()
    (tmp_path / "odd_room" / "inner" / "__init__.py").write_text("")
    for number, folder in enumerate(mine):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / f"third{number}.py").write_text(f"PLUGIN = {number}")
    monkeypatch.setenv("PAGODA_PLUGINS", os.pathsep.join([*map(str, mine), str(tmp_path / "nowhere"), ""]))
    assert inner.names() == ["third0", "third1"]
    assert dict(inner.items()) == {"third0": 0, "third1": 1}
