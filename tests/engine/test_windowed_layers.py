"""Policies that lose slots on models with sliding windows, which count slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda import SamplingParams
from pagoda.core.errors import RequestError

from .tiny import make_model, prompt


def params(kv: str, num: int = 16, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv, **more)


def mistral(folder: Path, window: int | None) -> Path:
    names = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    return make_model(folder, **names, sliding_window=window)


@pytest.mark.parametrize("kv", ["recent(budget=16)", "snapkv(budget=16, window=8)", "h2o(budget=16)", "quest(pages=3)"])
def test_a_window_as_wide_as_the_context_refuses_nothing(make_llm, tmp_path, kv) -> None:
    answers = []
    for window in (96, None):
        llm = make_llm(mistral(tmp_path / str(window), window), max_model_len=96, page_size=8)
        answers.append(llm.generate([prompt(1, 60), prompt(2, 80)], params(kv)))
    assert [output.token_ids for output in answers[0]] == [output.token_ids for output in answers[1]]
    assert [output.memory for output in answers[0]] == [output.memory for output in answers[1]]


@pytest.mark.parametrize("kv", ["recent(budget=8)", "quest(pages=3)"])
def test_windows_in_every_layer_refuse_by_name_and_say_what_can_be_done(make_llm, tmp_path, kv) -> None:
    folder = mistral(tmp_path / "w", 64)
    llm = make_llm(folder, max_model_len=65)
    with pytest.raises(RequestError, match=r"cannot run on this model: its attention windows count slots \(64\)") as no:
        llm.generate([prompt(1, 20)], params(kv))
    assert "max_model_len is 64 or less" in str(no.value)
    for possible in ("exact", "int8", "fp8", "int4"):
        assert possible in str(no.value)
        assert llm.generate([prompt(1, 20)], params(possible))[0].token_ids
    assert make_llm(folder, max_model_len=64).generate([prompt(1, 20)], params(kv))[0].token_ids


def test_models_of_no_family_are_asked_for_their_windows_too() -> None:
    from types import SimpleNamespace

    from pagoda.engine.lossy_layers import why_not_lossy

    def reason(longest: int, **config: Any) -> str:
        return why_not_lossy(SimpleNamespace(model=object(), config=config), longest) or ""

    assert reason(100) == reason(100, sliding_window=None) == reason(100, sliding_window=100) == ""
    for key in ("sliding_window", "window_size", "attention_chunk_size"):
        assert "count slots (32)" in reason(100, **{key: 32})
        assert "count slots (32)" in reason(100, text_config={key: 32})
    assert "ALiBi" in reason(100, alibi=True)
