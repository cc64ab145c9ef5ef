"""Shares and ratios against figures worked out by hand; the page against the committed JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.page import insert, marks
from benchmarks.peers.engines import names
from benchmarks.peers.report import markdown, short, verdict_tables
from benchmarks.peers.roofline import decode_seconds, prefill_seconds
from benchmarks.peers.settings import SETTINGS
from benchmarks.peers.shapes import SHAPES
from benchmarks.peers.store import Repetition
from benchmarks.peers.summary import Summary, newest_whole, read_all, summarise
from benchmarks.probe import Probe

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "A", "cpu_family_model": "1/2", "cores": 2, "memory_gib": 8, "flags": ["avx2"]}
PROBE = [40.0, 50.0, 400.0, 800.0]
QWEN = SHAPES["qwen05b"]
BEGIN, END = marks("peers")


def repetition(engine: str, number: int, rate: float, weights: str = "bf16", **fields: object) -> Repetition:
    given = {
        "rates": {"decode": rate},
        "before": PROBE,
        "after": PROBE,
        "info": {"version": "1", "weight_bytes": 10**9},
    }
    return Repetition("qwen05b", weights, "b1", engine, number, f"2026-01-01T00:0{number}", **(given | fields))  # type: ignore[arg-type]


def test_the_published_numbers_of_parameters() -> None:
    assert QWEN.layer_params == 357_826_560  # 24 x (896 x 896 x 2 + 896 x 128 x 2 + 3 x 896 x 4864)
    assert QWEN.head_params == 136_134_656
    assert QWEN.kv_bytes(1, 16) == 12288
    assert SHAPES["llama1b"].layer_params == 973_078_528


def test_decode_is_bound_by_bytes() -> None:
    seconds = decode_seconds(QWEN, SETTINGS["b1"], Probe(*PROBE), "bf16", 10**9, 16)
    assert seconds == pytest.approx((1e9 + 160 * 12288) / 40e9)


def test_a_shared_prefix_is_read_once() -> None:
    fast = Probe(40, 50, 4000, 8000)  # at 400 GFLOP/s 32 rows are bound by operations
    seconds = decode_seconds(QWEN, SETTINGS["shared"], fast, "bf16", 10**9, 16)
    assert seconds == pytest.approx((1e9 + (2048 + 32 * 80) * 12288) / 40e9)


def test_prefill_is_bound_by_operations() -> None:
    linear = 2 * (1024 * 357_826_560 + 136_134_656)
    attention = 4 * 24 * 14 * 64 * 1024 * 1025 / 2
    for weights, rate in (("bf16", 400e9), ("int8", 800e9)):
        seconds = prefill_seconds(QWEN, SETTINGS["p1024"], Probe(*PROBE), weights, 10**9)
        assert seconds == pytest.approx(linear / rate + attention / 400e9)


def test_median_spread_share_and_ratio_inside_a_round() -> None:
    ours = [repetition("pagoda", n, rate) for n, rate in enumerate([20.0, 40.0, 22.0])]
    theirs = [repetition("vllm", n, rate) for n, rate in enumerate([10.0, 20.0, 22.0])]
    noisy = repetition("vllm", 1, 1.0, foreign_cores=1.0)
    summary = summarise(
        [*ours, *theirs, noisy, repetition("transformers", 0, 0, failure="too old; see /a/log")], MACHINE
    )
    mine, peer = summary.figures
    assert (mine.engine, mine.median, mine.spread, mine.num, mine.ratio) == ("pagoda", 22.0, 0.909, 3, None)
    assert (peer.engine, peer.median, peer.num, peer.ratio) == ("vllm", 20.0, 3, 1.818)  # the middle of 9 pairs
    assert mine.share == pytest.approx(22 * (1e9 + 160 * 12288) / 40e9, abs=1e-3)
    assert summary.absent == {"qwen05b/bf16/b1/transformers": "too old"}
    assert (summary.first, summary.last) == ("2026-01-01T00:00", "2026-01-01T00:02")


def test_earlier_figures_stay_where_nothing_newer_was_measured() -> None:
    failed = repetition("openvino", 0, 0, failure="no interpreter")
    earlier = summarise(
        [repetition("pagoda", 0, 20.0), repetition("vllm", 0, 10.0), repetition("pagoda", 0, 5.0, "int8"), failed],
        MACHINE,
    )
    later = summarise([repetition("pagoda", 4, 30.0), repetition("openvino", 4, 15.0)], MACHINE)
    both = later.over(earlier)
    medians = {(f.weights, f.engine): (f.median, f.ratio, f.at) for f in both.figures}
    assert medians == {
        ("bf16", "pagoda"): (30.0, None, "2026-01-01T00:04"),
        ("bf16", "vllm"): (10.0, 2.0, "2026-01-01T00:00"),  # beside what Pagoda had then
        ("int8", "pagoda"): (5.0, None, "2026-01-01T00:00"),
        ("bf16", "openvino"): (15.0, 2.0, "2026-01-01T00:04"),
    }
    assert (both.first, both.last, both.absent) == ("2026-01-01T00:00", "2026-01-01T00:04", {})
    assert later.over(both) == both


def test_a_ratio_is_taken_where_both_saw_the_same_machine() -> None:
    fast = {"before": [60.0, 300.0, 400.0, 800.0], "after": [62.0, 300.0, 400.0, 800.0]}
    ours = [repetition("pagoda", 0, 10.0), repetition("pagoda", 1, 20.0, **fast)]
    assert _ratio([*ours, repetition("vllm", 1, 40.0)]) == 0.25  # of the other round, at the same bandwidth
    assert _ratio([*ours, repetition("vllm", 1, 40.0, before=fast["before"])]) is None  # it changed meanwhile
    assert _ratio([ours[0], repetition("vllm", 1, 40.0, **fast)]) is None
    assert _ratio([ours[0], replace(repetition("vllm", 1, 40.0), at="2026-01-01T01:02")]) is None  # another hour


def _ratio(everything: list[Repetition]) -> float | None:
    return next(figure.ratio for figure in summarise(everything, MACHINE).figures if figure.engine == "vllm")


def test_masked_flags_make_another_machine() -> None:
    machine = MACHINE | {"flags": ["avx512_bf16", "amx_tile"]}
    masked = summarise([repetition("pagoda", 0, 20, masked=["amx_tile"])], machine)
    assert masked.name == "a-1-2-without-amx-tile"
    assert "### A, AVX-512 BF16, AMX masked" in markdown([masked])
    with pytest.raises(ValueError, match="no one table"):
        summarise([repetition("pagoda", 0, 20, masked=["amx_tile"]), repetition("pagoda", 1, 20)], machine)


def test_nothing_clean_is_an_error() -> None:
    with pytest.raises(ValueError, match="no clean repetition"):
        summarise([repetition("vllm", 0, 1.0, foreign_cores=1.0)], MACHINE)


def test_the_words_name_what_is_short_and_what_is_missing(tmp_path: Path) -> None:
    everything = [repetition("pagoda", 0, 20), repetition("vllm", 0, 40), repetition("vllm", 0, 80, "int8")]
    summary = summarise(everything, MACHINE)
    text = markdown([summary])
    assert "| bf16 | vllm | **40.0** (once) | 0 |" in text
    assert "- bf16, pagoda: decode b=8, decode b=32, prefill 1024, " in text
    assert "- int8, pagoda, llamacpp, openvino: everything\n- int8, vllm: decode b=8, decode b=32, " in text
    assert "| Pagoda, bf16 | 20.0 |\n| fastest peer, bf16 | 40.0 vllm |\n| fastest peer, int8 | 80.0 vllm |" in short(
        summary
    )
    assert "behind what is asked: bf16 decode b=1 0.50 of vllm (asked 1.00); bf16 decode b=1 50 % (asked 90 %" in text
    summary.save(tmp_path / "a" / "summary.json")
    assert Summary.read(tmp_path / "a" / "summary.json") == summary


def test_insert_keeps_the_rest_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert(page, "new\n", "peers")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("none")
    with pytest.raises(ValueError, match="has no lines"):
        insert(page, "new\n", "peers")


def test_the_page_shows_the_committed_figures(tmp_path: Path) -> None:
    summaries = read_all(ROOT / "benchmarks" / "peers" / "results")
    newest = short(newest_whole(summaries))
    page, readme = ROOT / "docs" / "performance.md", ROOT / "README.md"
    for file, part, text in (
        (page, "peers", markdown(summaries)),
        (page, "peers-asked", verdict_tables(summaries)),
        (readme, "peers", newest),
    ):
        begin, end = marks(part)
        shown = file.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()
        assert shown == text.strip(), "run: python -m benchmarks.peers report"
    for summary in summaries:
        assert {figure.engine for figure in summary.figures} <= set(names())
        for shape in {figure.shape for figure in summary.figures}:
            assert (ROOT / "docs" / "img" / f"peers-{summary.name}-{shape}.svg").exists()


def test_each_machine_has_a_file_and_the_newest_comes_first(tmp_path: Path) -> None:
    old = summarise([repetition("pagoda", 0, 20)], MACHINE)
    new = summarise(
        [repetition("pagoda", 1, 30)], MACHINE | {"cpu": "Intel(R) Xeon(R) Processor", "flags": ["amx_tile"]}
    )
    for summary in (old, new):
        summary.save(tmp_path / f"{summary.name}.json")
    assert new.name.startswith("intel-xeon-")
    assert read_all(tmp_path) == [new, old]
    text = markdown([new, old])
    assert text.index("### Intel(R) Xeon(R) Processor, AMX") < text.index(f"### {MACHINE['cpu']}, ")
    with pytest.raises(ValueError, match="has no results"):
        read_all(tmp_path / "none")
