"""What cannot work is refused in one line that says what to do, before anything is loaded or queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda import (
    LLM,
    BudgetError,
    ConfigError,
    EngineClosedError,
    ModelError,
    PagodaError,
    RequestError,
    SamplingParams,
)
from pagoda.bench.random_calibrations import calibrate_at_random, calibrated

from .conftest import kv_bytes
from .tiny import make_model, prompt


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dtype": "fp61"}, ConfigError, "accepted: auto"),
        ({"weights": "int3"}, ConfigError, "accepted: auto"),
        ({"device": "abacus"}, ConfigError, "accepted: auto, cpu"),
        ({"kv": "snapkw"}, ConfigError, "accepted: a2ats, ada"),
        ({"scheduling": "luck"}, ConfigError, "accepted: batchllm, classes, cost"),
        ({"page_size": 12}, ConfigError, "accepted: 8, 16"),
        ({"granularity": "token"}, ConfigError, "accepted: auto"),
        ({"max_model_len": 100_000}, ConfigError, "positions end at 512"),
        ({"max_model_len": "long"}, ConfigError, "number of tokens"),
        ({"max_num_seqs": 0}, ConfigError, "whole number from 1"),
        ({"max_num_batched_tokens": 2.5}, ConfigError, "whole number from 1"),
        ({"memory": "lots"}, ConfigError, "accepted"),
        ({"memory": "1MiB"}, BudgetError, "MiB"),
        ({"memory": "900TiB"}, BudgetError, "ask for at most"),
        ({"kv_memory": "1KiB"}, BudgetError, "raise it to that"),
        ({"colour": "red"}, ConfigError, "no option 'colour'"),
    ],
)
def test_options(make_llm, options, error, words) -> None:
    with pytest.raises(error) as caught:
        make_llm(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_are_not_there(make_llm, tmp_path) -> None:
    for model in ("", str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises((ModelError, ConfigError)) as caught:
            make_llm(model)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "empty"),
        ("", "empty"),
        ([999], "ids are 0 to 287"),
        ([1, -2], "prompt token 1 is -2"),
        ([1, "a"], "whole numbers"),
        (prompt(1, 512), "no room for an answer"),
        (12, "give text"),
        ([b"bytes"], "text or a list of token ids"),
    ],
)
def test_prompts(make_llm, ids, words) -> None:
    llm = make_llm()
    with pytest.raises(RequestError) as caught:
        llm.generate(ids if isinstance(ids, (str, int)) or ids == [b"bytes"] else [ids])
    assert words in str(caught.value)
    assert llm.stats()["queue"]["waiting"] == 0


def test_a_request_larger_than_the_pool_is_refused_with_the_numbers(make_llm) -> None:
    llm = make_llm(kv_memory=kv_bytes(16), page_size=8, max_num_seqs=4)
    with pytest.raises(RequestError, match=r"100 prompt tokens and up to 28 more|128 tokens"):
        llm.generate([prompt(1, 100)], SamplingParams(max_tokens=100, beam_width=2))
    with pytest.raises(RequestError, match="leaves no room"):
        llm.generate([prompt(1, 128)], SamplingParams(max_tokens=100))
    assert len(llm.generate([prompt(1, 100)], SamplingParams(max_tokens=None, ignore_eos=True))[0].token_ids) == 28


def test_one_bad_prompt_leaves_nothing_behind(make_llm) -> None:
    llm = make_llm()
    with pytest.raises(RequestError):
        llm.generate([prompt(1, 5), [999]])
    assert not llm._open().engine.has_work
    with pytest.raises(RequestError, match="2 SamplingParams for 1 prompts"):
        llm.generate([prompt(1, 5)], [SamplingParams(), SamplingParams()])
    with pytest.raises(RequestError, match="token ids are 0 to 287"):
        llm.generate([prompt(1, 5)], SamplingParams(stop_token_ids=[5000]))


def test_nothing_works_after_close(make_llm) -> None:
    llm = make_llm()
    llm.close()
    llm.close()
    for call in (llm.stats, lambda: llm.generate("a"), lambda: llm.max_model_len):
        with pytest.raises(EngineClosedError):
            call()
    assert issubclass(EngineClosedError, PagodaError)


def test_ctrl_c_leaves_nothing_behind(make_llm, monkeypatch, oracle) -> None:
    llm = make_llm()
    engine = llm._open().engine
    run = engine._runner.run
    calls = []

    def interrupted(plan, *more):
        calls.append(plan)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(plan, *more)

    monkeypatch.setattr(engine._runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([prompt(1, 5), prompt(2, 40)], SamplingParams(max_tokens=30))
    assert not engine.has_work
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    assert llm.generate([prompt(1, 5)], params)[0].token_ids == oracle(prompt(1, 5), 8)


def test_a_calibration_of_another_model_is_refused_with_what_to_do(make_llm: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "other", num_key_value_heads=4)
    calibrate_at_random(folder, 3, 4, 8)
    llm = make_llm(folder)
    for name in calibrated():
        with pytest.raises(
            ModelError, match=rf"{name}.* is of a model of 3 layers, and this one has 2; run: pagoda cal"
        ):
            llm.generate([prompt(1, 60)], SamplingParams(max_tokens=4, kv=name))
    assert llm.generate([prompt(1, 60)], SamplingParams(max_tokens=4))[0].error is None


BY_NUMBER = {"chai", "compresskv", "duo_attention", "lychee_decode", "razor_attention"}
"""Calibrations that say of each head what it is, whatever its width."""


@pytest.mark.parametrize(
    ("config", "fit"), [({"num_key_value_heads": 4}, {"compresskv", "longcache"}), ({"head_dim": 16}, BY_NUMBER)]
)
def test_a_calibration_of_other_heads_is_refused_before_a_step_reads_it(
    make_llm: Any, tmp_path: Path, config: dict[str, int], fit: set[str]
) -> None:
    folder = make_model(tmp_path / "other", **config)
    calibrate_at_random(folder, num_layers=2, num_heads=2, head_dim=8)
    llm = make_llm(folder)
    for name in calibrated():
        params = SamplingParams(max_tokens=4, kv=name)
        if name in fit:
            assert llm.generate([prompt(1, 60)], params)[0].error is None, name
            continue
        what_to_do = rf"{name}\..* is of a model of other heads \(.* run: pagoda calibrate {name} .* --force"
        with pytest.raises(ModelError, match=what_to_do):
            llm.generate([prompt(1, 60)], params)
    assert llm.generate([prompt(1, 60)], SamplingParams(max_tokens=4))[0].error is None


def test_arguments_of_other_types_are_named() -> None:
    with LLM("lantern", memory="1GiB") as llm:
        for params in ({"max_tokens": 3}, "greedy", 3):
            with pytest.raises(RequestError, match=f"params is a {type(params).__name__}; give SamplingParams"):
                llm.generate("Once", params)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="params is a dict; give SamplingParams"):
            llm.stream("Once", {"max_tokens": 3})  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="prompts is a bytes; give text, token ids"):
            llm.generate(b"Once")  # type: ignore[arg-type]
        assert repr(llm) == "<LLM lantern>"
    assert repr(llm) == "<LLM, closed>"


def test_a_model_is_named_by_a_path_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}.*config.json"):
        LLM(tmp_path)
