"""A decode step in its steady state allocates nothing: neither in the kernels, nor in what Python does around them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")


@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="counts by glibc and cc")
@pytest.mark.parametrize("batch", [1, 32])
def test_a_step_allocates_nothing(batch: int) -> None:
    command = [sys.executable, "-m", "benchmarks.allocations", "lantern", "--batch", str(batch)]
    options = ["--prompt", "8", "--steps", "17", "--memory", "1GiB", "--threads", "2"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    rows = [line.split(maxsplit=2) for line in run.stdout.splitlines()[1:]]
    medians = {name: float(median) for median, _, name in rows}
    assert medians["by the C++ kernels"] == 0
    assert medians["up to 512 bytes"] + medians["up to 64 KiB"] + medians["larger"] == 0, run.stdout
