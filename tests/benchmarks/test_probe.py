"""The probe compiles, measures something plausible, and says what is missing."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
from benchmarks.probe import NoProbeError, Probe, Prober, register_rates

needs_compiler = pytest.mark.skipif(not shutil.which("cc") and not shutil.which("gcc"), reason="needs a C compiler")


@needs_compiler
def test_a_look_at_the_machine(tmp_path: Path) -> None:
    prober = Prober(2, tmp_path)
    probe = prober()
    assert 0.1 < probe.read_gb_s < 5000
    assert 5 < probe.round_trip_ns < 1e6
    assert probe.bf16_gflop_s > 0.1
    assert probe.int8_gop_s > 0.1


@needs_compiler
def test_one_thread_has_no_round_trip(tmp_path: Path) -> None:
    assert Prober(1, tmp_path)().round_trip_ns == 0


@needs_compiler
def test_what_registers_multiply(tmp_path: Path) -> None:
    """By the instructions that this processor has: bytes faster than bfloat16, all of it more than nothing."""
    if platform.machine() != "x86_64":
        pytest.skip("asks an x86-64 processor")
    rates = register_rates(1, tmp_path)
    assert all(1 < rate < 1e5 for rate in rates.values())
    for bytes_, halves in (("vpdpbusd", "vdpbf16ps"), ("tdpbssd", "tdpbf16ps")):
        assert halves not in rates or rates[bytes_] > rates[halves]


@needs_compiler
def test_the_binary_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Prober(1, tmp_path)
    monkeypatch.setenv("CC", "/no/such/compiler")
    Prober(1, tmp_path)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoProbeError, match="no C compiler"):
        Prober(1, tmp_path)


def test_mean() -> None:
    assert Probe(10, 50, 400, 800).mean(Probe(30, 150, 500, 1000)) == Probe(20, 100, 450, 900)
