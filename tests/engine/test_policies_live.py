"""KV policies inside the engine: what only one of them shows. What holds for all is in test_policy_conformance.py."""

from __future__ import annotations

import pytest

from pagoda import ConfigError, RequestError, SamplingParams

from .tiny import make_model, prompt


def params(kv: str, num: int = 16) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


def test_a_prefix_hit_leaves_the_queries_that_a_policy_must_see(make_llm) -> None:
    """snapkv needs the last eight queries of the prompt, h2o all of them; recent none."""
    for kv, cached in (("recent(budget=9)", 56), ("snapkv(budget=9, window=8)", 48), ("h2o(budget=9)", 0)):
        llm = make_llm(page_size=8)
        llm.generate([prompt(40, 61)], params("exact"))
        assert llm.generate([prompt(40, 61)], params(kv))[0].usage.cached_tokens == cached


def test_a_compressed_sequence_is_replayed_in_chunks_between_acts(make_llm) -> None:
    """After the prompt snapkv never acts again, so 20 known tokens take one step; recent acts every six here."""
    for kv, most in (("snapkv(budget=9, window=8)", 3), ("recent(budget=12)", 6)):
        llm = make_llm(page_size=8)
        engine, intake = llm._open().engine, llm._intake
        engine.add(intake.request("a", prompt(40, 61), params(kv, 40)))
        for _ in range(20):
            engine.step()
        (sequence,) = engine.scheduler.running.values()
        engine.scheduler.preempt(sequence)
        steps = 0
        while sequence.num_computed < 61 + 19:
            engine.step()
            steps += 1
        assert steps <= most


def test_models_whose_attention_counts_slots_refuse_by_name(make_llm, tmp_path) -> None:
    windowed = make_model(tmp_path / "w", architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=16)
    llm = make_llm(windowed)
    with pytest.raises(RequestError, match="cannot run on this model: its attention windows count slots \\(16\\)"):
        llm.generate([prompt(1, 20)], params("recent(budget=8)"))
    assert llm.generate([prompt(1, 20)], params("exact"))[0].token_ids


def test_unknown_policies_are_refused_before_anything_runs(make_llm) -> None:
    llm = make_llm()
    with pytest.raises(ConfigError, match="accepted: ada, alisa"):
        llm.generate([prompt(40, 61)], params("snapkw"))
    assert llm.stats()["steps"]["requests_accepted"] == 0
    with pytest.raises(ConfigError, match="accepted: ada, alisa"):
        make_llm(kv="nothing")
