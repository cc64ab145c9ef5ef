"""``PAGODA_PROFILE``: kernels' seconds are part of the steps', and nothing is counted without it."""

import pytest

from pagoda import SamplingParams
from pagoda.engine.profile import Profile
from pagoda.kernels import dispatch

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def fresh_choices(monkeypatch):
    """Ops forget what they chose before and after: a choice holds whether it is timed."""
    for op in dispatch.OPS.values():
        monkeypatch.setattr(op, "chosen", {})
    monkeypatch.setattr(dispatch, "_timings", {})


def test_steps_are_divided_among_kernels(make_llm, fresh_choices, monkeypatch):
    pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")
    monkeypatch.setenv("PAGODA_PROFILE", "1")
    llm = make_llm()
    llm.generate([[1, 2, 3]], GREEDY)
    profile = llm.stats()["profile"]
    assert profile["steps"] == 6
    calls = {"embedding", "greedy", "attention", "norm", "sum and norm", "activation"}
    assert calls <= set(profile["kernels_ms"])
    assert profile["outside_ms"] > 0
    assert sum(profile["kernels_ms"].values()) + profile["outside_ms"] == pytest.approx(profile["step_ms"])


def test_encoding_within_steps_is_timed_apart_from_attention(make_llm, fresh_choices, monkeypatch):
    pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")
    monkeypatch.setenv("PAGODA_PROFILE", "1")
    llm = make_llm(page_size=8)
    params = SamplingParams(temperature=0, max_tokens=2, kv="int2(every=8)")
    for _ in range(2):  # the first of a codec finds out how its pages are read
        llm.generate([list(range(1, 40))], params)
    assert llm.stats()["profile"]["kernels_ms"]["encoding"] > 0


def test_nothing_is_timed_unless_asked(make_llm, fresh_choices, monkeypatch):
    monkeypatch.delenv("PAGODA_PROFILE", raising=False)
    llm = make_llm()
    llm.generate([[1, 2, 3]], GREEDY)
    assert "profile" not in llm.stats()
    assert dispatch.timings() == {}


def test_sums_are_subtracted():
    before = Profile(2, 1.0, {"norm": (4, 0.25)})
    after = Profile(5, 3.0, {"norm": (10, 0.75), "add": (1, 0.5)})
    part = after.since(before)
    assert part == Profile(3, 2.0, {"norm": (6, 0.5), "add": (1, 0.5)})
    assert part.outside_seconds == 1.0
