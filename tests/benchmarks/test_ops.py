"""benchmarks.ops: both ways compute the same, and what is printed are the tables."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.ops import __main__ as command
from benchmarks.ops import attention, embedding, experts, frame, linear, moves, norms, rotation, sampling
from benchmarks.ops.frame import Limits, Measured
from benchmarks.ops.timing import Times, in_turn

pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")


def test_ways_are_run_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    times = in_turn(ways, rounds=3, warm=1)
    assert [name for name, _ in calls] == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert len(times["a"].seconds) == len(times["b"].seconds) == 3, "the warm round does not count"


def test_both_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "COPIES_BYTES", 1)
    seen: dict[str, torch.Tensor] = {}

    def once(ways, rounds, warm, clock):
        seen.update({name: way(0) for name, way in ways.items()})
        return in_turn(ways, 1, 0)

    monkeypatch.setattr(linear, "in_turn", once)
    bounds = {"fp32": 1e-5, "bf16": 1e-2, "w8a8": 0.03, "w4a8": 0.2, "int8": 0.02, "int4": 0.2, "dgq": 0.2}
    for format, bound in bounds.items():
        seen.clear()
        list(linear.rows((64, 128), format, [5]))
        assert ("torch packed" in seen) == (format in linear.OWN)
        for name, result in seen.items():
            assert torch.dist(result, seen["torch"]) < bound * seen["torch"].norm(), (format, name)


def test_both_attentions_count_the_same_work() -> None:
    assert attention.Batch(2, 3, 5).flops(heads=1, dim=1) == 4 * 2 * (3 + 4 + 5)


def test_every_op_computes_what_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both give numbers; a draw, or a write into pages, has no twin to be compared with."""
    seen: dict[str, object] = {}

    def once(ways, rounds, warm, clock):
        seen.update({name: way(0) for name, way in ways.items()})
        return in_turn(ways, 1, 0)

    for module in (norms, rotation, sampling, experts, embedding):
        monkeypatch.setattr(module, "in_turn", once)
        if module is not sampling:
            monkeypatch.setattr(module, "TOKENS", (3,))
    monkeypatch.setattr(rotation, "POOL_BYTES", 1 << 20)
    bounds = {"bf16": 1e-2, "w8a8": 0.03}
    tables = [norms.rows(32), rotation.rows((4, 2), 16), experts.rows((32, 48), [*bounds]),
              embedding.rows((64, 32), ["bf16"]), sampling.rows(2000)]  # fmt: skip
    compared = 0
    for line in (line for lines in tables for line in lines):
        ours, theirs = (seen[name] for name in ("pagoda", "torch"))
        if line.about.get("op") == "greedy":
            assert ours == theirs
        elif isinstance(theirs, torch.Tensor):
            assert torch.dist(ours, theirs) < bounds.get(str(line.about.get("format")), 1e-2) * theirs.norm(), (
                line.about
            )
        elif line.about.get("op") == "rotary":
            assert all(torch.dist(one, two) < 1e-2 * two.norm() for one, two in zip(ours, theirs, strict=True))
        else:
            continue
        compared += 1
    assert compared == 2 + 1 + 2 + 1 + 3


def test_a_share_is_of_the_dearer_of_bytes_and_operations() -> None:
    limits, times = Limits(read=1e9, bf16=1e12, int8=2e12, fp32=1e11), {"pagoda": Times((2e-3, 2e-3))}
    assert Measured({}, times, 10**6, 10**6).share_of(limits) == pytest.approx(0.5)
    assert Measured({}, times, 10, 10**9).share_of(limits) == pytest.approx(0.5)
    assert Measured({}, times, 10, 10**9, "int8").share_of(limits) == pytest.approx(0.25)


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(frame, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(frame, "GEMM_SIZE", 64)
    monkeypatch.setattr(linear, "COPIES_BYTES", 1)
    for module in (linear, attention, moves, norms, sampling):
        monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(attention, "BATCHES", (attention.Batch(2, 1, 20), attention.Batch(1, 8, 24)))
    monkeypatch.setattr(moves, "NUM_BYTES", 1 << 16)
    monkeypatch.setattr(norms, "TOKENS", (3,))
    found = tmp_path / "ops.json"
    products = f"--clock cpu --json {found} linear --shape 32x48 --tokens 1 3 --formats bf16 w4a8"
    others = ("ternary --shape 32x48 --tokens 3", "attention --heads 4x2 --dim 32", "moves --dim 32", "norms --dim 32")
    for line in (products, *others, "sampling --vocab 500"):
        monkeypatch.setattr(sys, "argv", ["ops", *line.split()])
        command.main()
    out = capsys.readouterr().out
    assert out.count("\n| 3 |") == 3
    assert "\n| 1 | 8 | 24 |" in out
    assert out.count("\n| whole pages |") == out.count("\n| kept slots |") == 3
    assert out.count("\n| rms_norm | 3 |") == 1
    assert out.count("\n| top_k=50 |") == 3
    lines = json.loads(found.read_text())["lines"]
    assert [(line["table"].split()[2][:4], line["tokens"]) for line in lines] == [
        ("bf16", 1), ("bf16", 3), ("w4a8", 1), ("w4a8", 3),
    ]  # fmt: skip
    assert all(line["seconds"]["pagoda"]["least"] > 0 and line["share"] > 0 for line in lines)


def test_every_op_has_its_file_and_is_among_all() -> None:
    """A file of the folder that measures something is an op of the command, and ``all`` runs it."""
    folder = Path(command.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__", "frame", "timing"}
    parser = argparse.ArgumentParser()
    command.add_ops(parser)
    assert {*command.OPS} == files
    for name in files:
        assert parser.parse_args([name]).tables is not None


def test_a_bad_shape_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ops", "linear", "--shape", "4864"])
    with pytest.raises(SystemExit):
        command.main()
    assert "'4864'; give two numbers" in capsys.readouterr().err
