"""``pagoda bench kv``: what is refused, in one line, and the JSON."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pagoda.core.errors import ConfigError
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.models.catalog import embedded_model

from .conftest import MODEL, in_process, pagoda

PAGE = str(Path(__file__).parents[2] / "docs" / "kv-policies.md")


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
        (["--no-quality", "--cases", "3"], "--cases 3 is of the quality tasks"),
        (["--no-quality", "--no-speed", "--docs", PAGE], "--policies recent: --no-quality --no-speed measures nothing"),
        (["--add", "--docs", PAGE, "--cases", "7"], "--cases 7: the page's list for lantern has 36; leave it out"),
        (["--add", "--docs", PAGE, "--length", "300"], "--length 300: the page's list for lantern has 768"),
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


def written_as_the_docs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pagoda.bench.calibration as calibrations
    import pagoda.kv.policies as policies

    section = Path(PAGE).read_text(encoding="utf-8").partition("## Adding a method")[2]
    files = re.findall(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    places = ["kv/policies/loudest", "kv/policies/spokesmen", "kv/policies/q_filters", "bench/calibration/q_filters"]
    for place, content in zip(places, files, strict=True):
        file = tmp_path / "mine" / f"{place}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    for package in (policies, calibrations):  # as they were, afterwards
        monkeypatch.setattr(package, "__path__", list(package.__path__))
    monkeypatch.setenv("PAGODA_PLUGINS", str(tmp_path / "mine"))


def test_a_method_that_is_calibrated_is_added_as_the_docs_say(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_as_the_docs_say(tmp_path, monkeypatch)
    model = str(shutil.copytree(embedded_model().path, tmp_path / "m"))
    said = "Once upon a time there was a cat. " * 9
    run = ["run", model, "--prompt", said, "--max-tokens", "48", "--temperature", "0"]
    asked = [*run, "--kv", "q_filters(budget=24, every=8)"]
    before = in_process(capfd, *asked)
    assert before.code == 2
    assert f"q_filters was not calibrated for this model; run: pagoda calibrate q_filters {model}" in before.err
    assert in_process(capfd, "calibrate", "q_filters", model, "--length", "192").code == 0
    done = in_process(capfd, *asked)
    assert done.code == 0, done.err
    assert done.out != in_process(capfd, *run).out


def test_a_method_is_added_as_the_docs_say(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that docs/kv-policies.md writes down: found by name, in the pages without a price, then with one."""
    names = ["loudest", "spokesmen"]
    written_as_the_docs_say(tmp_path, monkeypatch)
    assert set(names) < set(POLICIES.names())
    assert parse_policy("spokesmen(speakers=2)").selection.speakers == 2
    with pytest.raises(ConfigError, match=r"spokesmen\(speakers=0.5\): expected int$"):
        parse_policy("spokesmen(speakers=0.5)")

    page, methods, bench = tmp_path / "page.md", tmp_path / "methods.md", ["bench", "kv", "lantern"]
    page.write_text(
        "".join(f"<!-- {p} -->\n<!-- end {p} -->\n" for p in ("methods", "prices lantern")), encoding="utf-8"
    )
    methods.write_text("<!-- methods -->\n<!-- end methods -->\n", encoding="utf-8")
    docs = ["--docs", str(page), "--methods", str(methods)]

    def run(*args: str) -> None:
        done = in_process(capfd, *bench, *args)
        assert done.code == 0, done.err

    def rows() -> list[str]:
        prices = page.read_text(encoding="utf-8").partition("<!-- prices")[2]
        return [line for line in prices.split("\n") if line.startswith("| `")]

    few = ["--policies", "recent,random", "--tasks", "recall,perplexity", "--cases", "1", "--length", "192"]
    run(*few, "--no-speed", *docs)
    run("--no-quality", "--no-speed", *docs)
    entries = methods.read_text(encoding="utf-8").split("### ")
    said = {name: next(entry for entry in entries if entry.startswith(f"{name}\n")) for name in names}
    assert "Score: the norm of the key." in said["loudest"]
    assert "**Deviation:** none" in said["loudest"]
    assert all(entry.rstrip().endswith("- lantern: not priced yet.") for entry in said.values())
    assert "| [`loudest`](kv-methods.md#loudest) | Loudest: the longest keys stay. | budget=0.25 | [loudest](" in (
        page.read_text(encoding="utf-8")
    )
    before = rows()
    run("--add", "--policies", ",".join(names), "--no-speed", *docs)
    after = rows()
    assert after[: len(before)] == before
    assert [line.partition("` ")[0] for line in after[len(before) :]] == ["| `loudest(budget=0.25)", "| `spokesmen"]
    assert len({line.count(" | ") for line in after}) == 1
    assert "- lantern: `spokesmen` holds 100% of the bytes and reads" in methods.read_text(encoding="utf-8")

    done = in_process(capfd, *bench, "--add", "--policies", "recent", "--no-speed", "--text", PAGE, *docs)
    assert done.code == 2
    assert "exact's perplexity is" in done.err


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
