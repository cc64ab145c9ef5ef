"""What is owed, in which order, and that a run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import plan
from benchmarks.peers.store import Repetition, Store

CELL = ("qwen05b", "bf16", "b1")


def repetition(engine: str, number: int = 0, **fields: object) -> Repetition:
    return Repetition(*CELL, engine, number, "2026-01-01T00:00:00+00:00", **fields)  # type: ignore[arg-type]


def test_round_robin_rotates() -> None:
    assert plan.queue({"a": 2, "b": 2, "c": 2}, 2) == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]


def test_one_that_owes_less_joins_later() -> None:
    assert plan.queue({"a": 2, "b": 1}, 2) == [(0, "a"), (1, "b"), (1, "a")]
    assert plan.queue({}, 3) == []


def test_only_clean_repetitions_count_and_only_for_a_while() -> None:
    noisy = [repetition("a", foreign_cores=0.9)] * 3
    assert plan.lacking(noisy, CELL, ["a", "b"], 2) == {"a": 1, "b": 2}
    assert plan.lacking([*noisy, noisy[0]], CELL, ["a"], 2) == {}


def test_a_failure_ends_it() -> None:
    assert plan.lacking([repetition("a", failure="no prefix cache")], CELL, ["a", "b"], 2) == {"b": 2}


def test_other_cells_do_not_count() -> None:
    assert plan.lacking([repetition("a")], ("qwen05b", "int8", "b1"), ["a"], 1) == {"a": 1}


def test_the_store_gives_back_what_it_got(tmp_path: Path) -> None:
    kept = [repetition("a", rates={"decode": 12.5}, info={"version": "1"}), repetition("b", failure="too old")]
    for one in kept:
        Store(tmp_path).add(one)
    assert list(Store(tmp_path)) == kept


def test_what_is_set_aside_is_owed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for engine in ("a", "b"):
        store.add(repetition(engine))
    assert store.set_aside(lambda made: made.engine == "a") == 1
    assert plan.lacking(store, CELL, ["a", "b"], 1) == {"a": 1}
    assert (tmp_path / "set_aside.jsonl").read_text().count('"engine": "a"') == 1
    assert store.set_aside(lambda made: False) == 0
