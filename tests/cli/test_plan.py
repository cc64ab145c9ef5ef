"""``pagoda plan`` as a person runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pagoda.cli import plan
from tests.plan.public_shapes import config_of

from .conftest import in_process


@pytest.fixture(autouse=True)
def no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_table_for_people_and_data_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    args = ("plan", "lantern", "--memory", "1GiB", "--prompt", "500", "--output", "100", "--concurrency", "4")
    shown = in_process(capfd, *args)
    assert shown.code == 0
    assert "Memory by account" in shown.out
    assert "guessed; run: pagoda doctor --calibrate" in shown.out
    data = in_process(capfd, *args, "--json").json
    assert data["plans"][0]["loss"] == 0.0
    assert sum(data["plans"][0]["accounts"].values()) == data["plans"][0]["total_bytes"] <= data["budget_bytes"]
    assert data["priced_itself"]


def test_pick_starts_the_server_with_the_plans_flags(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    args = ("plan", "lantern", "--memory", "1GiB", "--prompt", "500", "--output", "100")
    plans = in_process(capfd, *args, "--json").json["plans"]
    in_process(capfd, *args, "--pick", str(len(plans)))
    assert started[0][1:5] == ["-m", "pagoda", "serve", "lantern"]
    assert started[0][5:] == plans[-1]["flags"]
    refused = in_process(capfd, *args, "--pick", "99")
    assert refused.code == 2
    assert f"this budget has plans 1 to {len(plans)}" in refused.err


def test_the_flags_are_options_of_serve() -> None:
    from pagoda.cli.serve import serve
    from pagoda.core.units import GIB

    found = plan.examine(
        "lantern", str(GIB), prompt=500, output=100, concurrency=2, slo_ttft=None, slo_tpot=None, max_loss=None,
        disk=None,
    )  # fmt: skip
    options = {name.replace("_", "-") for name in serve.__annotations__}
    for one in found["plans"]:
        assert {flag.removeprefix("--") for flag in one.flags[::2]} <= options


def test_a_disk_is_shown_where_memory_is_too_small(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("Llama-3.2-1B")))
    done = in_process(capfd, "plan", str(tmp_path), "--memory", "400MiB", "--max-loss", "0")
    assert done.code == 2
    assert "the nearest budget that can is" in done.err
    done = in_process(capfd, "plan", str(tmp_path), "--memory", "2GiB", "--max-loss", "0")
    assert done.code == 0
    assert "read from disk at every step" in done.out
    done = in_process(capfd, "plan", str(tmp_path), "--memory", "2GiB", "--disk", "8GiB", "--json")
    assert done.code == 0, done.err
    assert done.json["placements"][0]["shares"]["weights"]["disk"] > 0.2


def test_kv_that_does_not_fit_is_planned_on_a_disk_and_started_there(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pagoda.cli.serve import serve

    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    folder = tmp_path / "far"
    args = ("plan", "lantern", "--memory", "660MiB", "--prompt", "1900", "--output", "90", "--concurrency", "64")
    args = (*args, "--disk", "2GiB", "--kv-offload-dir", str(folder), "--max-loss", "0")
    shown = in_process(capfd, *args)
    assert "offload: KV on disk, windows of up to" in shown.out
    plans = in_process(capfd, *args, "--json").json["plans"]
    number, found = next((n, one) for n, one in enumerate(plans, 1) if one["far"] is not None)
    assert found["running"] > plans[0]["running"]
    in_process(capfd, *args, "--pick", str(number))
    flags = started[0][5:]
    assert flags[flags.index("--kv-offload-dir") + 1] == str(folder)
    assert flags[flags.index("--kv") + 1] == "offload"
    assert folder.is_dir()
    options = {name.replace("_", "-") for name in serve.__annotations__}
    assert {flag.removeprefix("--") for flag in flags[::2]} <= options
    refused = in_process(capfd, "plan", "lantern", "--kv-offload-dir", str(folder))
    assert "no --disk says how many bytes" in refused.err


def test_placements_over_an_accelerator_that_is_stated(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """This machine needs none. What cannot be run is shown, said, and refused by --pick; what can is started."""
    from pagoda.cli.serve import serve

    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    (tmp_path / "config.json").write_text(json.dumps(config_of("Llama-3.1-8B")))
    args = ("plan", str(tmp_path), "--machine", "l4", "--host-memory", "64GiB", "--prompt", "500", "--output", "50")
    small = (*args, "--device-memory", "8GiB", "--disk", "100GB", "--concurrency", "8", "--max-loss", "0")
    shown = in_process(capfd, *small)
    assert shown.code == 0, shown.err
    assert "the engine keeps all on its device so far" in shown.out
    assert "ops are plain torch so far" in in_process(capfd, *args).out
    data = in_process(capfd, *small, "--json").json["placements"][0]
    assert data["shares"]["weights"]["device"] < 0.6
    assert data["why_not"]
    assert data["flags"] == []
    refused = in_process(capfd, *small, "--pick", "1")
    assert refused.code == 2
    assert "placement 1 cannot be started: the engine keeps all on its device" in refused.err
    assert not started
    in_process(capfd, *args, "--pick", "1")
    assert started[0][1:5] == ["-m", "pagoda", "serve", str(tmp_path)]
    flags = started[0][5:]
    assert flags[:2] == ["--device", "cuda"]
    options = {name.replace("_", "-") for name in serve.__annotations__}
    assert {flag.removeprefix("--") for flag in flags[::2]} <= options


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--device-memory", "8GiB"), "no --machine says which accelerator; known: l4"),
        (("--machines", "no-such-file.yaml"), "no-such-file.yaml"),
        (("--machine", "l4", "--kv-offload-dir", "far"), "beside an accelerator no KV is offloaded"),
        (("--machine", "l5"), "l5"),
        (("--machine", "l4", "--device-memory", "90GiB"), "l4 has 22.4 GiB; ask for less"),
        (("--machine", "l4", "--host-memory", "much"), "much"),
    ],
)
def test_accelerators_that_cannot_be_are_refused(
    capfd: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    done = in_process(capfd, "plan", "lantern", *args)
    assert done.code == 2
    assert message in done.err


def test_a_quantized_folder_keeps_its_formats(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    assert in_process(capfd, "quantize", "lantern", str(folder), "--format", "int4(group=32)").code == 0
    args = ("plan", str(folder), "--memory", "1GiB", "--prompt", "500", "--output", "100")
    shown = in_process(capfd, *args)
    assert "weights: as they are stored, int4(group=32) + int8; their own loss" in shown.out
    plans = in_process(capfd, *args, "--json").json["plans"]
    assert {one["choice"]["quantization"] for one in plans} == {"auto"}
    plain = in_process(capfd, "plan", "lantern", *args[2:], "--json").json["plans"]
    assert plans[0]["accounts"]["weights"] < plain[0]["accounts"]["weights"] / 2
