"""The decoder's program by every instruction set that this machine has, for families whose steps differ."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..kernels.isas import ISAS
from .test_program import MEMBERS

FAMILIES = ("llama", "gemma2", "gpt_neox", "mixtral", "deepseek_v3", "bitnet")
CHOSEN = [next(member for member in MEMBERS if member.startswith(f"{family}-")) for family in FAMILIES]


@pytest.mark.host
@pytest.mark.parametrize("isa", ISAS[:-1])  # the last is the one of all other tests
def test_the_program_equals_transformers_by(isa: str, repo_root) -> None:
    """The set is chosen when the extension is loaded, so each gets a process of its own."""
    tests = [f"tests/models/test_program.py::test_program_equals_transformers[{member}]" for member in CHOSEN]
    said = "from pagoda.kernels._extension import best_isa; print('by', best_isa())"
    code = f"import sys, pytest; code = pytest.main(sys.argv[1:]); {said}; sys.exit(code)"
    command = [sys.executable, "-c", code, "-q", "-x", "-p", "no:cacheprovider", *tests]
    env = os.environ | {"PAGODA_ISA": isa, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=repo_root, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert f"by {isa}\n" in run.stdout
    assert f"{len(CHOSEN)} passed" in run.stdout
