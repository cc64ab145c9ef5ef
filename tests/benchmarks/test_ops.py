"""benchmarks.ops: both ways compute the same, and what is printed are the tables."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.ops import __main__ as command
from benchmarks.ops import attention, embedding, experts, frame, linear, moves, norms, rotation, sampling, timing
from benchmarks.ops.frame import Limits, Measured
from benchmarks.ops.report import markdown
from benchmarks.ops.results import Line, Results, Taken, joined, read_all
from benchmarks.ops.timing import REFERENCE, Times, in_turn
from benchmarks.page import marks

pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call that does not count before a turn, no more; the heap of this process stays as other tests expect it."""
    monkeypatch.setattr(timing, "SETTLE", 0.0)
    monkeypatch.setattr(command, "keep_memory", lambda: None)


def test_ways_are_run_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    times = in_turn(ways, rounds=5)
    assert [name for name, _ in calls] == [*"aaaabbbb", *"bbbaaa"], "each turn begins with a call that does not count"
    assert [number for name, number in calls if name == "a"] == [*range(7)]
    assert len(times["a"].seconds) == len(times["b"].seconds) == 5


def test_the_reference_comes_last_and_once_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    ways = {name: lambda number, name=name: calls.append(name) for name in (REFERENCE, "a")}
    assert len(in_turn(ways, rounds=9)[REFERENCE].seconds) == timing.FEW
    assert calls == ["a"] * 12 + [REFERENCE] * timing.FEW
    monkeypatch.setattr(timing, "LONG", 0.0)
    slow = ways | {REFERENCE: lambda number: time.sleep(1e-3)}
    times = in_turn(slow, rounds=30)
    assert (len(times["a"].seconds), len(times[REFERENCE].seconds)) == (2 * timing.BURST, 0)


def test_short_ways_settle_before_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE", 1e-3)
    numbers: list[int] = []
    assert len(in_turn({"a": numbers.append}, rounds=3)["a"].seconds) == 3 < len(numbers) - 1
    assert numbers == [*range(len(numbers))]


def test_one_disturbed_round_is_no_spread() -> None:
    assert Times((1.0, 1.0, 1.0, 1.0, 9.0)).spread == 0
    assert Times((1.0, 2.0, 4.0, 8.0)).spread == pytest.approx((4 - 2) / 3)


def test_both_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "COPIES_BYTES", 1)
    seen: dict[str, torch.Tensor] = {}

    def once(ways, rounds, clock):
        seen.update({name: way(0) for name, way in ways.items()})
        return in_turn(ways, 1)

    monkeypatch.setattr(linear, "in_turn", once)
    bounds = {"fp32": 1e-5, "bf16": 1e-2, "w8a8": 0.03, "w4a8": 0.2, "int8": 0.02, "int4": 0.2, "dgq": 0.2}
    for format, bound in bounds.items():
        seen.clear()
        list(linear.rows((64, 128), format, [5]))
        assert seen.keys() >= {"pagoda", "torch", REFERENCE}
        assert (len(seen) > 3) == (format in linear.OWN)
        for name, result in seen.items():
            assert torch.dist(result, seen["torch"]) < bound * seen["torch"].norm(), (format, name)


def test_both_attentions_count_the_same_work() -> None:
    assert attention.Batch(2, 3, 5).flops(heads=1, dim=1) == 4 * 2 * (3 + 4 + 5)


def test_attention_and_its_reference_read_the_same_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def once(ways, rounds, clock):
        seen.update({name: way(0) for name, way in ways.items()})
        return in_turn(ways, 1)

    monkeypatch.setattr(attention, "in_turn", once)
    for batch in (attention.Batch(2, 1, 40), attention.Batch(1, 24, 24), attention.Batch(1, 8, 24, "int8")):
        monkeypatch.setattr(attention, "BATCHES", (batch,))
        (line,) = attention.rows((4, 2), 64)
        assert torch.dist(seen["pagoda"], seen[REFERENCE]) < 2e-2 * seen[REFERENCE].norm(), batch
        assert seen["torch"].numel() == seen["pagoda"].numel()
        assert line.num_bytes > 0


def test_every_op_computes_what_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both give numbers; a draw, or a write into pages, has no twin to be compared with."""
    seen: dict[str, object] = {}

    def once(ways, rounds, clock):
        seen.update({name: way(0) for name, way in ways.items()})
        return in_turn(ways, 1)

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
    measured = [
        Measured({}, times, 10**6, 10**6),
        Measured({}, times, 10, 10**9),
        Measured({}, times, 10, 10**9, "int8"),
    ]
    lines = frame.lines("norms", "a table", measured, limits)
    assert [line.share for line in lines] == pytest.approx([0.5, 0.5, 0.25])


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
    assert "| tokens | pagoda, us | torch, us | torch / pagoda | oneDNN packed, us | oneDNN packed / pagoda | " in out
    assert out.count("\n| top_k=50 |") == 3
    lines = Results.read(found).lines
    assert [(line.table, line.about["tokens"]) for line in lines] == [
        ("bf16, 32 x 48", 1), ("bf16, 32 x 48", 3), ("w4a8, 32 x 48", 1), ("w4a8, 32 x 48", 3),
    ]  # fmt: skip
    assert all(line.ways["pagoda"].least > 0 and line.share > 0 for line in lines)
    _reported(found, tmp_path, monkeypatch)


def _reported(found: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib for drawings")
    page = folder / "ops.md"
    page.write_text("\n".join(marks("ops")), encoding="utf-8")
    (folder / "img").mkdir()
    line = f"report {found} --page {page} --results {folder / 'results'}"
    monkeypatch.setattr(sys, "argv", ["ops", *line.split()])
    command.main()
    (whole,) = read_all(folder / "results")
    assert f"img/ops-{whole.name}-linear.svg" in page.read_text(encoding="utf-8")
    assert (folder / "img" / f"ops-{whole.name}-linear.svg").stat().st_size > 1000


def line(tokens: int, table: str = "bf16", **seconds: float) -> Line:
    ways = {name.replace("_", " "): Taken(one, one, 0.1, 5) for name, one in seconds.items()}
    return Line("linear", table, {"tokens": tokens}, ways, 10**6, 10**9, 1e-3)


def results(*lines: Line, day: str = "2026-01-01", **fields: object) -> Results:
    machine = {"cpu": "A", "cpu_family_model": "1/2", "cores": 2, "memory_gib": 8, "flags": ["avx2"]}
    given = {"machine": machine, "threads": 2, "clock": "wall", "torch": "2", "when": (day, day)} | fields
    return Results(**given, limits=[{"read": 1e10, "bf16": 1e12, "int8": 2e12, "fp32": 1e11}], lines=[*lines])


def test_the_page_names_who_is_faster_where() -> None:
    few = line(1, pagoda=2e-3, torch=4e-3, oneDNN_packed=3e-3, reference=1e-3)
    many = line(256, pagoda=2e-3, torch=2.1e-3, oneDNN_packed=1.8e-3)
    close = line(4096, pagoda=2e-3, torch=1.99e-3)
    text = markdown([results(few, many, close)])
    assert "| bf16 | 1.50 | **0.90** oneDNN packed | 0.99 |" in text
    assert "(1 of 3 lines):\n\n- bf16, tokens 256: 0.90 by oneDNN packed" in text, "within the noise nobody is faster"
    assert "| 1 | 2000 (10) | 4000 (10) | 2.0 | 3000 (10) | 1.50 | 1000 (10) | 0.50 | 0.5 | 500 | 0.50 |" in text
    assert "| 256 | 2000 (10) | 2100 (10) | 1.05 | 1800 (10) | 0.90 | - | - |" in text
    assert "In none of 1 lines is another way faster" in markdown([results(few)])


def test_runs_are_joined_and_the_later_one_counts() -> None:
    old = results(line(1, pagoda=1.0), line(1, "int8", pagoda=3.0))
    new = results(line(1, pagoda=2.0), day="2026-01-02")
    whole = joined([new, old])
    assert [(one.table, one.ours) for one in whole.lines] == [("int8", 3.0), ("bf16", 2.0)]
    assert (whole.when, len(whole.limits)) == (("2026-01-01", "2026-01-02"), 2)
    with pytest.raises(ValueError, match="runs of threads 2 and 1 are no one table"):
        joined([old, results(threads=1, day="2026-01-03")])


def test_the_page_shows_the_committed_figures() -> None:
    folder = Path(command.__file__).parent / "results"
    found, (begin, end) = read_all(folder), marks("ops")
    shown = (command.ROOT / "docs" / "ops.md").read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert shown.strip() == markdown(found).strip(), "run: python -m benchmarks.ops report"
    for one in found:
        assert (command.ROOT / "docs" / "img" / f"ops-{one.name}-linear.svg").exists()


def test_every_op_has_its_file_and_is_among_all() -> None:
    """A file of the folder that measures something is an op of the command, and ``all`` runs it."""
    folder = Path(command.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "__main__",
        "frame",
        "plots",
        "report",
        "results",
        "timing",
    }
    parser = argparse.ArgumentParser()
    command.add_ops(parser)
    assert {*command.TABLES} == files == {*parser.parse_args(["all"]).ops}
    assert all(parser.parse_args([name]).ops == (name,) for name in files)


def test_a_bad_shape_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ops", "linear", "--shape", "4864"])
    with pytest.raises(SystemExit):
        command.main()
    assert "'4864'; give two numbers" in capsys.readouterr().err
