"""``pagoda plan cluster``: fleets that were seen to keep the promise, in one line what cannot be, and quickly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pagoda.cli.main import app

BASE = ["plan", "cluster", "--trace", "poisson", "--model", "llama-2-7b", "--requests", "120", "--rate", "6"]


def asked(*more: str) -> dict:  # type: ignore[type-arg]
    done = CliRunner().invoke(app, [*BASE, *more, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_fleets_keep_the_promise_and_the_cheapest_comes_first() -> None:
    found = asked("--machine", "l4", "--machine", "a100-80g", "--slo-tpot", "0.15")
    prices = [one["dollars_per_hour"] for one in found["fleets"]]
    assert prices == sorted(prices)
    assert all(one["attained"] >= 0.95 for one in found["fleets"])
    assert {tuple(one["machines"]) for one in found["fleets"]} >= {("a100-80g",), ("l4",)}
    assert found["divided"] == []


def test_machines_are_divided_between_prompts_and_answers() -> None:
    found = asked("--machine", "a100-80g", "--divide", "a100-80g", "--num-machines", "2")
    assert [one["name"] for one in found["divided"]] == ["alike", "1 for prompts, 1 for answers", "in pairs"]
    assert all(one["goodput_per_second"] > 0 for one in found["divided"])


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("box: {teraflops: 1, gigabytes_per_second: 2, memory: 3GB}\n")
    for more, said in (
        (["--machine", "abacus"], "accepted: "),
        (["--machines", str(mine), "--machine", "box"], "leave no room for KV in box"),
        (["--machine", "a100-80g", "--slo-tpot", "0.001"], "promise less"),
    ):
        done = CliRunner().invoke(app, [*BASE, *more])
        assert done.exit_code == 2, more
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_is_still_planned_and_help_names_both() -> None:
    done = CliRunner().invoke(app, ["plan", "--help"])
    assert "plan cluster --help" in done.stdout
    assert "--concurrency" in done.stdout
    assert "--slo-ttft" in CliRunner().invoke(app, ["plan", "cluster", "--help"]).stdout


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        (["--model", "llama-2-7b"], "a100-80g: 60%"),
        (["--model", "lantern", "--device", "l4"], "l4: 60%"),
        (["--model", "lantern", "--device", "here", "--memory", "1GiB"], "this machine: "),
    ],
)
def test_traffic_is_simulated_on_machines_of_the_catalogue_and_on_this_one(more: list[str], steps: str) -> None:
    done = CliRunner().invoke(app, ["bench", "sim", "poisson", "--requests", "20", "--policy", "fcfs", "--json", *more])
    found = json.loads(done.stdout)
    assert found["policies"]["fcfs"]["num_requests"] == 20
    assert steps in found["steps"]


def test_a_budget_is_of_this_machine_only() -> None:
    done = CliRunner().invoke(app, ["bench", "sim", "poisson", "--memory", "1GiB"])
    assert done.exit_code == 2
    assert "leave them out" in done.stderr
