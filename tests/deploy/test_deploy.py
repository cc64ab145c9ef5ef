"""What is in deploy/: the unit is valid, hardened and holds memory as stated; the Dockerfile is linted and not root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pagoda.core.units import MIB, parse_bytes

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT, DOCKERFILE = DEPLOY / "pagoda.service", DEPLOY / "Dockerfile"


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_the_limit_is_the_budget_and_five_percent() -> None:
    environment = " ".join(settings()["Environment"])
    budget = parse_bytes(re.search(r"MEMORY=(\S+)", environment)[1])
    (limit,) = settings()["MemoryMax"]
    assert 0 <= parse_bytes(limit) - budget * 1.05 < 2 * MIB or 0 <= budget * 1.05 - parse_bytes(limit) < 2 * MIB


def test_the_unit_gives_nothing_away() -> None:
    found = settings()
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictNamespaces"):
        assert found[name] == ["yes"], name
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert int(found["TimeoutStopSec"][0]) > 30  # the drain of a default server


def test_the_options_exist() -> None:
    from typer.main import get_command

    from pagoda.cli.serve import app

    known = {option for param in get_command(app).params for option in param.opts}
    lines = [*settings()["ExecStart"], re.search(r"^CMD \[(.*)\]$", DOCKERFILE.read_text(), re.MULTILINE)[1]]
    for line in lines:
        for option in re.findall(r"--[a-z-]+", line):
            assert option in known, option


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    # The program must exist for the check; the unit's path is that of an installation.
    unit = tmp_path / "pagoda.service"
    unit.write_text(UNIT.read_text().replace("/opt/pagoda/bin/pagoda", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "pagoda.service" not in done.stderr, done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_hadolint_finds_no_fault() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("needs hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_image_is_built_in_two_stages_and_runs_as_nobody() -> None:
    text = DOCKERFILE.read_text()
    stages = re.findall(r"^FROM (\S+)( AS \w+)?$", text, re.MULTILINE)
    assert len(stages) == 2
    last = text[text.rindex("\nFROM ") :]
    assert "g++" not in last
    assert re.search(r"^USER 10001", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (DEPLOY.parent / name).exists(), name
