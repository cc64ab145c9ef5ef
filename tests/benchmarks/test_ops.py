"""benchmarks.ops: both ways compute the same, and what is printed are the tables."""

from __future__ import annotations

import sys

import pytest
import torch
from benchmarks.ops import __main__ as command
from benchmarks.ops import attention, linear, moves
from benchmarks.ops.timing import in_turn

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


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(linear, "COPIES_BYTES", 1)
    monkeypatch.setattr(linear, "ROUNDS", 1)
    monkeypatch.setattr(attention, "ROUNDS", 1)
    monkeypatch.setattr(attention, "BATCHES", (attention.Batch(2, 1, 20), attention.Batch(1, 8, 24)))
    monkeypatch.setattr(moves, "ROUNDS", 1)
    monkeypatch.setattr(moves, "NUM_BYTES", 1 << 16)
    products = "--clock cpu linear --shape 32x48 --tokens 1 3 --formats bf16 w4a8"
    for line in (products, "attention --heads 4x2 --dim 32", "moves --dim 32"):
        monkeypatch.setattr(sys, "argv", ["ops", *line.split()])
        command.main()
    out = capsys.readouterr().out
    assert out.count("\n| 3 |") == 2
    assert "\n| 1 | 8 | 24 |" in out
    assert out.count("\n| whole pages |") == out.count("\n| kept slots |") == 3


def test_a_bad_shape_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ops", "linear", "--shape", "4864"])
    with pytest.raises(SystemExit):
        command.main()
    assert "'4864'; give two numbers" in capsys.readouterr().err
