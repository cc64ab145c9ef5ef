"""``pagoda bench sim`` and ``pagoda bench serve`` from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import in_process


def test_sim_compares_policies_and_writes_what_it_found(tmp_path: Path, capfd: Any) -> None:
    words = "bench sim poisson --requests 20 --rate 50 --policy fcfs --policy vtc --tenants 2 --json --out"
    done = in_process(capfd, *words.split(), str(tmp_path))
    assert done.code == 0, done.err
    assert list(done.json["policies"]) == ["fcfs", "vtc"]
    assert done.json["policies"]["vtc"]["num_requests"] == 20
    assert [d["measure"] for d in done.json["against_first"]["vtc"]][:3] == ["ttft", "tpot", "e2e"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e2e.svg", "sim.json", "sim.md", "ttft.svg"]
    assert "| vtc |" in (tmp_path / "sim.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sim absent.csv", "no trace at absent.csv"),
        ("sim poisson --policy luck", "luck"),
        ("sim poisson --device abacus", "accepted: a100-80g"),
        ("sim poisson --time-scale 0", "time scale 0.0"),
        ("serve localhost:80", "http://HOST:PORT"),
        ("serve http://127.0.0.1:9", "no server is there"),
        ("serve http://127.0.0.1:9 --against absent.json", "absent.json is no serve.json"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, capfd: Any) -> None:
    done = in_process(capfd, "bench", *words.split())
    assert done.code != 0
    assert message in done.err
    assert "Traceback" not in done.err


def test_the_simulator_and_the_load_generator_need_no_torch() -> None:
    code = "import sys, pagoda.bench.sim, pagoda.bench.load; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
