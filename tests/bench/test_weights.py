from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from pagoda.bench import weights, weights_made, weights_report
from pagoda.cli.main import main
from pagoda.core.errors import ConfigError


def test_measures_are_what_they_say() -> None:
    certain = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    other = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    assert weights.perplexity([[0, 0, 1]], [certain]) == pytest.approx(1.0, abs=1e-3)
    assert weights.perplexity([[0, 0, 0]], [torch.zeros(3, 2)]) == pytest.approx(2.0)
    assert weights.agreement([certain], [other]) == pytest.approx(2 / 3)


def test_the_price_list_of_lantern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- prices of lantern -->\nold\n<!-- end of prices -->\nZ\n")
    arguments = ["bench", "weights", "lantern", "--formats", "int8; int4; ternary; int4 by gptq; 0.9 by width"]
    arguments += ["--tokens", "512", "--calibration-tokens", "2000", "--no-speed"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json", "--out", str(tmp_path / "o"), "--docs", str(page)])
    assert not ended.value.code
    found = {p["format"]: p for p in json.loads(capsys.readouterr().out)["prices"]}
    exact, int8, int4, ternary = (found[name] for name in ("none", "int8", "int4", "ternary"))
    assert found["int4 by gptq"]["num_bytes"] == int4["num_bytes"]
    assert found["int4 by gptq"]["kl"] < int4["kl"]
    assert int4["num_bytes"] < found["0.9 by width"]["num_bytes"] < exact["num_bytes"]
    assert found["0.9 by width"]["kl"] > 0
    assert (exact["kl"], exact["top1"]) == (0.0, 1.0)
    assert exact["num_bytes"] > int8["num_bytes"] > int4["num_bytes"]
    assert int8["kl"] < int4["kl"] < ternary["kl"]
    assert exact["perplexity"] <= int8["perplexity"] * 1.01 < int4["perplexity"]
    assert exact["recall"] is not None
    assert exact["recall"] > ternary["recall"]
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# A\n")
    assert text.endswith("Z\n")
    assert "| `int4` |" in text
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "bench",
                "weights",
                "lantern",
                "--formats",
                "int4; int5",
                "--no-quality",
                "--no-speed",
                "--docs",
                str(page),
                "--add",
            ]
        )
    assert not ended.value.code
    rows = {line.split("`")[1]: line for line in page.read_text().splitlines() if line.startswith("| `")}
    assert [*rows] == [*found, "int5"]
    assert rows["int5"].endswith("| - | - | - | - | - | - |"), "nothing was measured of it but its bytes"
    kept = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert {name: rows[name] for name in kept} == kept
    assert ElementTree.parse(tmp_path / "o" / "weights-lantern.svg").getroot().tag.endswith("svg")


def test_bytes_and_speed_where_quality_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "weights", "lantern", "--formats", "int4", "--no-quality", "--no-speed"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    exact, int4 = capsys.readouterr().out.splitlines()[2:]
    assert exact.startswith("| `none` |")
    assert int4.startswith("| `int4` |")
    assert int4.endswith("| - | - | - | - | - | - |")


def test_a_page_without_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ConfigError, match="has no lines"):
        weights_report.rewrite(page, weights.PriceList("m", 0, []))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int4 by magic", "unknown method 'magic'; accepted: .*mixed"),
        ("much by width", "'much' is no share of neurons"),
    ],
)
def test_what_cannot_be_made(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        weights_made.make("lantern", name, [], tmp_path)


def test_what_cannot_be_made_of_this_model_is_left_out_by_name() -> None:
    said: list[tuple[str, str]] = []
    found = weights.price(
        "lantern", ["int4 by gptq"], [[1, 2, 3]], speed=False, left_out=lambda *what: said.append(what)
    )
    assert [p.format for p in found.prices] == ["none"]
    assert said == [("int4 by gptq", "method 'gptq' needs calibration text")]
    with pytest.raises(ConfigError, match="needs calibration text"):
        weights.price("lantern", ["int4 by gptq"], [[1, 2, 3]], speed=False)
