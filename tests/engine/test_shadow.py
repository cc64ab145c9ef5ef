"""Live quality: chosen requests are run exactly when nobody waits, and what is counted is what a comparison gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda import ConfigError, SamplingParams
from pagoda.engine.shadow import MAX_PENDING, divergence

from .conftest import kv_bytes
from .tiny import prompt

PROMPTS = [prompt(40 + index, 50) for index in range(6)]


def params(kv: str, num: int = 12, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv, **more)


def test_every_other_lossy_request_is_compared(make_llm: Any) -> None:
    llm = make_llm(shadow=0.5)
    plain = make_llm().generate(PROMPTS, params("recent(budget=8)"))
    outputs = llm.generate(PROMPTS, params("recent(budget=8)"))
    assert [o.token_ids for o in outputs] == [o.token_ids for o in plain], "watching changes nothing"
    llm.generate(PROMPTS, params("exact"))
    found = llm.stats()["shadow"]
    assert found["pending"] == found["skipped"] == 0
    assert list(found["policies"]) == ["recent(budget=8)"]
    mine = found["policies"]["recent(budget=8)"]
    assert (mine["requests"], mine["tokens"]) == (3, 36)
    assert 0 < mine["agreed"] < 36, "a budget of 8 is felt by this model"
    assert mine["kl_sum"] > 0.1
    assert llm.stats()["steps"]["requests_finished"] == 12, "shadows are nobody's requests"


def test_what_loses_nothing_agrees_everywhere(make_llm: Any) -> None:
    llm = make_llm(shadow=1.0, page_size=8)
    llm.generate(PROMPTS[:2], params("recent(budget=400)"))
    sampled = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, seed=5, kv="quest(pages=99)")
    llm.generate(PROMPTS[:2], sampled)
    for found in llm.stats()["shadow"]["policies"].values():
        assert found["agreed"] == found["tokens"] == 24
        assert found["kl_sum"] < 1e-4


def test_the_numbers_are_those_of_both_runs(make_llm: Any, oracle: Any) -> None:
    """Agreement counted again from transformers' choices along the lossy answer."""
    llm = make_llm(shadow=1.0)
    said = llm.generate([PROMPTS[0]], params("recent(budget=8)"))[0].token_ids
    with torch.inference_mode():
        logits = oracle.model(torch.tensor([[*PROMPTS[0], *said]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    agreed = int((logits.argmax(-1) == torch.tensor(said)).sum())
    assert llm.stats()["shadow"]["policies"]["recent(budget=8)"]["agreed"] == agreed


def test_a_request_that_comes_in_goes_first(make_llm: Any) -> None:
    llm = make_llm(shadow=1.0)
    engine, intake = llm._open().engine, llm._intake
    engine.add(intake.request("lossy", PROMPTS[0], params("recent(budget=8)", 30)))
    while not engine.shadows.has_pending:
        engine.step()
    engine.step()
    assert [s.group.request.request_id for s in engine.scheduler.running.values()] == ["shadow:lossy"]
    engine.add(intake.request("urgent", PROMPTS[1], params("exact", 4)))
    assert not engine.scheduler.running
    done = []
    while engine.has_work:
        done += [output.request_id for output in engine.step() if output.finished]
    assert done == ["urgent"]
    assert engine.shadows.stats()["policies"]["recent(budget=8)"]["tokens"] == 30
    assert not engine.shadows.is_busy


def test_what_cannot_be_compared_is_counted_as_skipped(make_llm: Any) -> None:
    """Aborted, failed, too long for the exact cache, too many at once."""
    llm = make_llm(shadow=1.0, page_size=8, kv_memory=kv_bytes(12), max_model_len=96, enable_prefix_caching=False)
    engine, intake = llm._open().engine, llm._intake
    engine.add(intake.request("gone", PROMPTS[0], params("recent(budget=8)", 30)))
    for _ in range(3):
        engine.step()
    engine.abort("gone")
    assert engine.shadows.num_skipped == 1
    for index in range(MAX_PENDING + 2):
        engine.add(intake.request(str(index), prompt(index, 9), params("recent(budget=8)", 2)))
    while engine._requests:
        engine.step()
        assert len(engine.shadows._pending) <= MAX_PENDING
    assert engine.shadows.num_skipped >= 1


def test_budgets_are_told_apart_until_there_are_too_many(make_llm: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("pagoda.engine.shadow.MAX_SPELLED", 2)
    llm = make_llm(shadow=1.0)
    for kv in ("recent(budget=8)", "recent( every=4,budget=9)", "recent(budget=7)", "recent(budget=8)"):
        llm.generate(PROMPTS[:1], params(kv, 3))
    found = llm.stats()["shadow"]["policies"]
    assert {kv: one["requests"] for kv, one in found.items()} == {
        "recent(budget=8)": 2, "recent(budget=9, every=4)": 1, "recent": 1
    }  # fmt: skip


def test_divergence_is_that_of_the_distributions() -> None:
    generator = torch.Generator().manual_seed(1)
    exact, lossy = (torch.randn(20, generator=generator).log_softmax(-1) for _ in range(2))
    true = float((exact.exp() * (exact - lossy)).sum())
    order = lossy.argsort(descending=True)
    assert divergence(exact[order], lossy[order]) == pytest.approx(true, rel=1e-3)
    part = divergence(exact[order[:8]], lossy[order[:8]])
    assert 0 < part < true
    assert divergence(exact, exact) == 0


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "1"])
def test_what_is_no_share_is_refused(share: Any) -> None:
    from pagoda import LLM

    with pytest.raises(ConfigError, match="give a share of the requests from 0.0 to 1.0"):
        LLM("lantern", shadow=share)
