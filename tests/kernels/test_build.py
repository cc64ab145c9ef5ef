"""What the build does where it cannot compile: it installs Pagoda without the C++ kernels, and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CMAKE = shutil.which("cmake")


@pytest.mark.skipif(CMAKE is None, reason="cmake is not installed (pip brings one of its own for a build)")
def test_without_a_compiler_nothing_is_built_and_nothing_fails(repo_root: Path, tmp_path: Path) -> None:
    """What such an installation says is tested in tests/engine/test_every_isa.py."""
    environment = os.environ | {"CXX": str(tmp_path / "no-compiler")}
    said = ""
    for arguments in (
        ["-S", str(repo_root), "-B", str(tmp_path / "build")],
        ["--build", str(tmp_path / "build")],
        ["--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "installed")],
    ):
        run = subprocess.run([CMAKE, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        said += " ".join(run.stderr.split())
    assert "installed without its C++ kernels (no C++ compiler was found); the reference kernels will serve" in said
    assert not list(tmp_path.glob("installed/**/*.so"))
