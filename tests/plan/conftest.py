"""What holds for every test of plans."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are of bfloat16 in 16 bits, also where this machine's kernels take it in twelve."""
    monkeypatch.setattr("pagoda.plan.subject.isa_of", lambda flags: "")
