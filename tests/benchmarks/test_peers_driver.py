"""The whole way with two real engines on a tiny model: workers, gate, repetitions, resumption, report."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.machine import describe
from benchmarks.peers import shapes
from benchmarks.peers.__main__ import main
from benchmarks.peers.driver import Driver, Options
from benchmarks.peers.report import markdown
from benchmarks.peers.shapes import Shape
from benchmarks.peers.store import Store
from benchmarks.peers.summary import summarise

TINY = Shape("tiny", "llama", "LlamaForCausalLM", 32, 2, 2, 1, 16, 64, 512, 1e4, 1e-5, 16384)

pytestmark = pytest.mark.skipif(not shutil.which("cc") and not shutil.which("gcc"), reason="needs a C compiler")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    pythons = {"pagoda": sys.executable, "transformers": sys.executable}
    return Options(pythons, {}, tmp_path, tmp_path / "out", threads=1, rounds=1, measure_gate=f"flock {tmp_path}/lock")


def test_two_engines_in_turn_and_again_nothing(options: Options) -> None:
    said: list[str] = []
    progress: list[tuple[int, int]] = []
    groups = {("tiny", "bf16"): ["b1", "shared"]}
    Driver(options, said.append, lambda *pair: progress.append(pair)).run(groups)
    made = {(r.engine, r.setting): r for r in Store(options.out)}
    assert set(made) == {(e, s) for e in options.pythons for s in groups["tiny", "bf16"]}, said
    assert made["transformers", "shared"].failure == "transformers: no prefix cache"
    assert made["pagoda", "shared"].failure is None
    for setting, engine in [("b1", "pagoda"), ("b1", "transformers"), ("shared", "pagoda")]:
        one = made[engine, setting]
        assert one.rates["decode"] > 0
        assert len(one.before) == len(one.after) == 4
        assert one.peak_rss_bytes > 50 << 20
    assert progress[-1] == (4, 4)  # a failure owes nothing more, nor do those whose attempts are used up

    before = list(Store(options.out))
    Driver(options, said.append).run(groups)
    assert [r for r in Store(options.out) if r not in before and r.clean] == []
    clean = [r for r in before if r.failure or r.rates]
    report = markdown([summarise([_alone(r) for r in clean], describe())])
    assert "transformers: no prefix cache" in report


def _alone(repetition: object) -> object:
    """Other tests run beside this one; the report is about the figures, not about who else was there."""
    return replace(repetition, foreign_cores=0.0)  # type: ignore[type-var]


def test_an_engine_that_cannot_start_is_left_out_by_name(options: Options, tmp_path: Path) -> None:
    said: list[str] = []
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    Driver(replace(options, pythons={"vllm": str(broken)}), said.append).run({("tiny", "bf16"): ["b1"]})
    assert any("without vllm: vllm ended with 7" in line for line in said)
    assert list(Store(options.out)) == []


def test_the_command(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    words = ["run", "--models", str(tmp_path), "--out", str(options.out), "--engines", "vllm", "openvino"]
    main([*words, "--vllm-python", str(broken), "--only", "tiny/bf16/*", "--again", "vllm"])
    said = capsys.readouterr().err
    assert "without openvino: give --openvino-python to measure it" in said
    assert "without vllm: vllm ended with 7" in said
    with pytest.raises(SystemExit, match="names no cell; accepted: SHAPE/WEIGHTS/SETTING"):
        main([*words, "--only", "nothing"])
    with pytest.raises(SystemExit, match="false ended with 1 and gave no permission"):
        main([*words[:6], "pagoda", "--only", "tiny/bf16/b1", "--measure-gate", "false"])


def test_an_engine_that_hangs_is_ended(options: Options, tmp_path: Path) -> None:
    said: list[str] = []
    stuck = tmp_path / "python"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    slow = replace(options, pythons={"vllm": str(stuck)}, load_s=0.2)
    Driver(slow, said.append).run({("tiny", "bf16"): ["b1"]})
    assert any("vllm took longer than 0 s to load" in line for line in said)


def test_what_does_not_fit_into_a_slice_is_left_out_by_name(options: Options) -> None:
    said: list[str] = []
    only = {"pagoda": options.pythons["pagoda"]}
    Driver(replace(options, pythons=only, slice_s=1e-3, rounds=2), said.append).run({("tiny", "bf16"): ["b1"]})
    assert any(line.startswith("pagoda needs ") and "for b1, longer than a slice" in line for line in said), said


def test_too_little_memory_is_said_before_anything_starts(options: Options) -> None:
    said: list[str] = []
    Driver(replace(options, reserve_bytes=1 << 60), said.append).run({("tiny", "bf16"): ["b1"]})
    assert any("without pagoda" in line and "of memory are available" in line for line in said)
