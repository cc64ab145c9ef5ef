from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.core.errors import ModelError
from pagoda.models.resolve import resolve


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path.resolve()
    assert resolve(str(tmp_path)) == tmp_path.resolve()


NONSENSE = ["", "  ", "../nowhere", "/no/such/folder", "a/b/c", "org/..", "a--b/c", "x\0y", "~nobody/x"]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_without_the_network(text: str) -> None:
    with pytest.raises(ModelError, match="expected|accepted") as caught:
        resolve(text)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file; give a GGUF file, or the folder"):
        resolve(tmp_path / "model.safetensors")


def test_a_gguf_file_is_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"x")
    assert resolve(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    with pytest.raises(ModelError, match=r"several GGUF files \(a.gguf, b.gguf\); name one of them"):
        resolve(tmp_path)
    (tmp_path / "b.gguf").unlink()
    assert resolve(tmp_path) == tmp_path / "a.gguf"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline. The library reads its settings once, at import: so both are set."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_and_not_cached(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match="org/name: not a local folder.*use 'lantern'") as caught:
        resolve("org/name")
    assert "\n" not in str(caught.value)


def test_offline_and_cached(hub_cache: Path) -> None:
    repo = hub_cache / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert resolve("org/name") == snapshot
