"""Steps of the whole engine by every instruction set that this machine has, on the model that ships with Pagoda."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ..kernels.isas import ISAS
from .every_isa import WEIGHTS

CHOICES = ("PAGODA_ISA", "PAGODA_KERNELS", "PAGODA_EXTENSION")


@pytest.mark.host
def test_greedy_tokens_by_every_instruction_set(repo_root) -> None:
    """In float32 they are those of a Pagoda that was built without a compiler. With any weights a sequence alone has
    those that it has in a batch. Steps are one program (without vectors, products with plain weights are torch's, op by
    op). One test, so that the processes run once however tests are spread.
    """
    command = [sys.executable, "-m", "tests.engine.every_isa", "none", *ISAS]
    plain = {name: value for name, value in os.environ.items() if name not in CHOICES}
    run = subprocess.run(command, cwd=repo_root, env=plain, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert "the C++ extension was not built" in said["none"]["isa"]
    expected = said["none"]["float32 auto"]["alone"]
    assert all(len(set(tokens)) > 5 for tokens in expected), "says nothing that could differ"
    for isa in ISAS:
        assert said[isa]["isa"] == isa
        assert said[isa]["float32 auto"]["alone"] == expected, isa
        for dtype, quantization in WEIGHTS:
            found = said[isa][f"{dtype} {quantization}"]
            assert found["together"] == found["alone"], (isa, dtype, quantization)
            assert (found["op by op"] is None) == (isa != "base" or quantization != "auto"), (isa, found["op by op"])
