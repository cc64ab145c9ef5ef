"""A gate holds its command for as long as the block runs, and a command that ends earlier is noticed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from benchmarks.peers.gate import Gate, GateLostError


def test_the_command_lives_as_long_as_the_block(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    taken = ["flock", "--nonblock", str(lock), "true"]
    with Gate(f"flock {lock}") as gate:
        gate.check()
        assert subprocess.run(taken).returncode == 1
    assert subprocess.run(taken).returncode == 0


def test_a_command_with_a_limit() -> None:
    with Gate("timeout 0.1") as gate:
        assert gate._process is not None
        gate._process.wait()
        with pytest.raises(GateLostError, match="timeout 0.1 ended before"):
            gate.check()


def test_a_command_that_gives_no_permission() -> None:
    with pytest.raises(GateLostError, match="false ended with 1"), Gate("false"):
        pass


def test_no_command_is_no_gate() -> None:
    with Gate() as gate:
        gate.check()
