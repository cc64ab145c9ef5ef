"""``pagoda bench kv``: what is refused, in one line, and the JSON."""

from __future__ import annotations

import json

import pytest

from .conftest import MODEL, in_process, pagoda


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--policies", "snapkw"], "accepted: a2ats, ada"),
        (["--budgets", "much"], "budget 'much' is not a number"),
        (["--tasks", "juggling"], "quality task"),
        (["--cases", "0"], "cases is 0"),
        (["--length", "4"], "length is 4"),
        (["--text", "/nowhere.txt"], "cannot be read"),
        (["--docs", "page.md"], "page.md: cannot be read"),
        (["--docs", __file__], "no place for 'prices lantern'"),
        (["--methods", "page.md"], "say which one with --docs"),
        (["--out", "/dev/null/here"], "--out /dev/null/here: cannot be made"),
        (["--no-quality", "--no-speed"], "leave nothing to measure"),
        (["--no-quality", "--tasks", "recall"], "--tasks recall is of the quality tasks"),
        (["--policies", "int8,quest", "--budgets", "0.5"], "none of these policies takes one from there"),
    ],
)
def test_refusals(capfd: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    done = in_process(capfd, "bench", "kv", "lantern", "--policies", "recent", *args)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_json_and_files(tmp_path) -> None:
    done = pagoda(
        "bench", "kv", "lantern", "--policies", "recent,snapkv(window=8)", "--budgets", "32", "--tasks", "recall",
        "--cases", "1", "--length", "192", "--no-speed", "--json", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [p["kv"] for p in found["prices"]] == ["exact", "recent(budget=32)", "snapkv(budget=32, window=8)"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "kv-lantern.json", "kv-lantern.md", "kv-lantern.png", "kv-lantern-recall.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens", "0"], "--tokens is 0; give a whole number from 2"),
        (["--no-quality", "--text", "/nonexistent"], "--text /nonexistent is judged for quality"),
        (["--docs", "/nonexistent/page.md"], "/nonexistent/page.md: cannot be read"),
        (["--formats", "int8", "--calibration", "/nonexistent"], "--calibration /nonexistent: none of these formats"),
        (["--formats", "int8 by gptq", "--calibration-tokens", "0"], "--calibration-tokens is 0; give a whole number"),
    ],
)
def test_prices_of_weights_refuse_before_they_measure(
    capfd: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    done = in_process(capfd, "bench", "weights", MODEL, *options)
    assert done.code == 2
    assert words in " ".join(done.err.split())
