"""AMX masked by the system: for this process and its children, for every library alike."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.machine import describe, name_of, strongest, without
from benchmarks.without_amx import tiles_refused

MACHINE = {"cpu": "Intel(R) Xeon(R) Processor", "cpu_family_model": "6/1", "cores": 2, "memory_gib": 8,
           "flags": ["avx512f", "avx512_bf16", "amx_tile"]}  # fmt: skip


def test_a_masked_machine_is_another_by_name() -> None:
    masked = without(MACHINE, ["amx_tile"])
    assert masked["flags"] == ["avx512f", "avx512_bf16"]
    assert (name_of(MACHINE), name_of(masked)) == ("intel-xeon-6-1", "intel-xeon-6-1-without-amx-tile")
    assert (strongest(MACHINE), strongest(masked)) == ("AMX", "AVX-512 BF16, AMX masked")
    assert without(MACHINE, []) == MACHINE


def test_tiles_are_refused_to_a_process_and_its_children() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.masked", "given"], capture_output=True, text=True, check=True
    )
    words = done.stdout.split()
    assert words[:2] == ["given", "refused"]
    assert "amx" not in words[2:], "kernels chose tiles that the system refuses"


@pytest.mark.skipif(tiles_refused(), reason="no AMX here")
def test_tiles_are_there_otherwise() -> None:
    assert "masked" not in describe()
