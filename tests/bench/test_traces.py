"""Traces are read as they are, drawn by seed, scaled; equal blocks become equal text."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from statistics import mean, pstdev

import pytest

from pagoda.bench.trace_files import read_trace
from pagoda.bench.traces import BLOCK, Arrival, draw, scaled
from pagoda.core.errors import ConfigError

TRACES = Path(__file__).parents[3] / "shared" / "data" / "traces"


def test_azure_rows_are_read_and_failed_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0000000,5,0\n2023-11-16 18:17:05.4799600,12,8\n"
    )
    first, second = read_trace(path)
    assert (first.number, first.at, first.num_prompt, first.num_output) == (0, 0.0, 4808, 10)
    assert (second.number, second.num_prompt) == (1, 12)
    assert second.at == pytest.approx(1.5)


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-16 18:17:03.5,30,4\n2023-11-16 18:17:05.0,50,6\n",  # Azure's order, no header
        "Timestamp,Model,Request tokens,Response tokens,Total tokens\n5,x,30,4,34\n6.5,y,50,6,56\n",
        "request_id,num_decode_tokens,num_prefill_tokens,arrived_at\n9,4,30,0.5\n8,6,50,2\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:01.5+00:00,50,6.0\n2024-05-10 00:00:00+00:00,30,4\n",
    ],
)
def test_columns_of_other_traces_are_found_and_lines_sorted(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    found = read_trace(tmp_path / "t.csv")
    assert [(a.number, a.at, a.num_prompt, a.num_output) for a in found] == [(0, 0.0, 30, 4), (1, 1.5, 50, 6)]


def test_blocks_of_16_tokens_come_with_seconds(tmp_path: Path) -> None:
    rows = [(0.5, 10, [1]), (2.0, 100, [1, 2, 3, 4, 5, 6, 7])]
    lines = [
        f'{{"chat_id": 1, "timestamp": {at}, "input_length": {n}, "output_length": 3, "hash_ids": {blocks}}}\n'
        for at, n, blocks in rows
    ]
    (tmp_path / "q.jsonl").write_text("".join(lines))
    one, two = read_trace(tmp_path / "q.jsonl")
    assert [one.block, two.block, two.at] == [16, 16, 1.5]
    (tmp_path / "plain.jsonl").write_text('{"timestamp": 10, "input_length": 5, "output_length": 3}\n')
    assert read_trace(tmp_path / "plain.jsonl")[0].blocks == ()


def test_mooncake_rows_share_the_text_of_equal_blocks(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for when, blocks in ((1000, [7, 8, 9]), (3500, [7, 8, 5])):
            file.write(f'{{"timestamp": {when}, "input_length": 1300, "output_length": 4, "hash_ids": {blocks}}}\n')
    first, second = read_trace(path)
    assert [first.at, second.at] == [0.0, 2.5]
    one, two = first.prompt(1000), second.prompt(1000)
    assert len(one) == len(two) == 1300
    assert one[: 2 * BLOCK] == two[: 2 * BLOCK]
    assert one[2 * BLOCK :] != two[2 * BLOCK :]
    assert 10 <= min(one) <= max(one) < 1000


def test_prompts_without_blocks_begin_like_no_other() -> None:
    a, b = Arrival(0, 0.0, 700, 1), Arrival(1, 0.0, 700, 1)
    assert a.prompt(5000)[:16] != b.prompt(5000)[:16]
    assert a.prompt(5000) == a.prompt(5000)
    assert a.prompt(5000)[:100] != a.prompt(5000)[BLOCK : BLOCK + 100]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,12\n", "x.csv, line 2"),
        ("x.jsonl", '{"timestamp": 1}\n', "x.jsonl, line 1"),
        ("x.jsonl", '{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1]}\n', "1 blocks of 512"),
        ("x.csv", "\n", "no request"),
        (
            "x.csv",
            "when,ContextTokens,GeneratedTokens\n1,2,3\n",
            "no column for a request's time: it has when,",
        ),
        ("x.csv", "TIMESTAMP,ContextTokens,Speed\n1,2,3\n", "answer's tokens.*accepted: generatedtokens, response"),
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3,4\n", "line 2.*4 columns, and the first line has 3"),
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnan,2,3\n", "line 2.*its time is nan"),
        ("x.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n1,,3\n", "line 2"),
        ("x.jsonl", "[1]\n", "x.jsonl, line 1"),
        ("x.jsonl", '{"timestamp": 1, "input_length": 6}\n', "it has no 'output_length'"),
        ("x.jsonl.gz", "this is no gzip", "x.jsonl.gz cannot be read"),
        ("x.txt", "1\n", "accepted: .csv"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(tmp_path / name)
    with pytest.raises(ConfigError, match="no trace at"):
        read_trace(tmp_path / "absent.csv")


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("bursty", 2.0)])
def test_drawn_arrivals_have_the_rate_and_the_burstiness(kind: str, variation: float) -> None:
    drawn = draw(kind, 4000, 5.0, seed=3, prompt=100, output=20, tenants=3)
    gaps = [b.at - a.at for a, b in itertools.pairwise(drawn)]
    assert mean(gaps) == pytest.approx(0.2, rel=0.1)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(variation, rel=0.1)
    assert mean(a.num_prompt for a in drawn) == pytest.approx(100, rel=0.1)
    assert {a.tenant for a in drawn} == {"tenant-0", "tenant-1", "tenant-2"}
    assert draw(kind, 50, 5.0, seed=3) == draw(kind, 50, 5.0, seed=3) != draw(kind, 50, 5.0, seed=4)


def test_drawn_prompts_share_beginnings() -> None:
    drawn = draw("poisson", 30, 5.0, prompt=64, shared=2)
    heads = {tuple(a.prompt(1000)[:32]) for a in drawn}
    assert len(heads) == 2
    assert len({tuple(a.prompt(1000)) for a in drawn}) == 30
    assert all(len(a.prompt(1000)) == a.num_prompt for a in drawn)


def test_scaling_keeps_what_is_shared() -> None:
    a = Arrival(0, 10.0, 1300, 100, blocks=(1, 2, 3))
    (small,) = scaled([a], time=5.0, length=0.1)
    assert (small.at, small.num_prompt, small.num_output, small.block) == (2.0, 130, 10, 52)
    assert len(small.prompt(100)) == 130
    with pytest.raises(ConfigError, match="both must be above 0"):
        scaled([a], time=0)
    with pytest.raises(ConfigError, match="accepted: bursty, poisson"):
        draw("steady", 1, 1.0)


@pytest.mark.parametrize(
    "name", ["azure_llm_2023_code.csv.gz", "azure_llm_2023_conv.csv.gz", "mooncake_conversation.jsonl.gz"]
)
def test_the_published_traces_are_read(name: str) -> None:
    if not (TRACES / name).exists():
        pytest.skip(f"{TRACES / name} is absent")
    found = read_trace(TRACES / name, 300)
    assert len(found) == 300
    assert found[0].at == 0.0
    assert all(a.at <= b.at for a, b in itertools.pairwise(found))
