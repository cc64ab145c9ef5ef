"""Policies that lose slots on models with sliding windows, which count slots."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pagoda import SamplingParams
from pagoda.bench.random_calibrations import calibrate_at_random
from pagoda.core.errors import RequestError
from pagoda.kv.policies._layers import BESIDE_WINDOW
from pagoda.kv.policies._scored import Once
from pagoda.models.catalog import read_config
from pagoda.plan.subject import Subject

from .interrupted import check_interrupted
from .kv_policies import spelled
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

    from pagoda.engine.lossy_layers import distances

    def reason(longest: int, **config: Any) -> str:
        return distances(SimpleNamespace(model=object(), config=config)).why_not(longest)  # type: ignore[arg-type]

    assert reason(100) == reason(100, sliding_window=None) == reason(100, sliding_window=100) == ""
    for key in ("sliding_window", "window_size", "attention_chunk_size"):
        assert "count slots (32)" in reason(100, **{key: 32})
        assert "count slots (32)" in reason(100, text_config={key: 32})
    assert "ALiBi" in reason(100, alibi=True)


# -- models with windows in some layers --------------------------------------------------------------------------------

MIXED: dict[str, dict[str, Any]] = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        "tie_word_embeddings": False,
    },
}
"""Two of four layers have a window of 16 slots: layers 0 and 2."""
FULL, WINDOWED = [1, 3], [0, 2]
PROMPTS = [prompt(40, 61), prompt(41, 18), prompt(42, 40)]
KINDS = ["streaming_llm", "snapkv", "h2o", "ada", "pyramid", "kvmerger", "hashevict"]
"""Of each way to act one: rows of layers, what the newest queries looked at, all of them, budgets by head and by layer,
content that is written, values of a policy's own."""
EXACT = [*(spelled(name, 400) for name in KINDS), "quest(pages=100)", "quest(pages=1.0)"]


@pytest.fixture(scope="module", params=MIXED)
def mixed(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return make_model(folder, model_type=request.param, num_hidden_layers=4, sliding_window=16, **MIXED[request.param])


def slots(engine: Any, sequence: Any) -> Any:
    """[L, H]: what each head holds."""
    lens = engine.manager.table(sequence.seq_id).lens
    return lens.repeat(4 * 2 // len(lens)).reshape(4, 2)


@pytest.mark.parametrize("name", KINDS)
def test_full_layers_keep_the_budget_windowed_ones_everything_and_pages_serve_others(make_llm, mixed, name) -> None:
    """A block is 8 pages. 64 tokens are 8 blocks, of which an eviction to 16 slots gives back 6 halves."""
    llm = make_llm(mixed, page_size=8, max_model_len=112, enable_prefix_caching=False)
    engine, intake = llm._open().engine, llm._intake
    engine.add(intake.request("lossy", prompt(50, 64), params(spelled(name, 16), 30), stream=True))
    engine.step()
    (sequence,) = engine.scheduler.running.values()
    planned = Subject.of("it", read_config(str(mixed))).policy(spelled(name, 16), 112)
    assert sequence.policy == planned, "what a plan prices"
    pool, evicting = engine.manager.pool, sequence.policy.eviction
    assert pool.num_used_pages <= 8 * 4 + 3 * 4, "nothing was given back"
    while engine.has_work:
        held, answered = slots(engine, sequence), sequence.num_computed - sequence.prompt_len
        assert (held[WINDOWED] == sequence.num_computed).all()
        most = 16 + answered if isinstance(evicting, Once) else 16
        assert held[FULL].mean() <= most
        counted = (most + min(sequence.num_computed, 16 + 1 + BESIDE_WINDOW)) / 2
        assert held.mean() <= sequence.policy.most_slots(sequence.num_computed, 64) == counted
        engine.step()
    assert pool.num_used_pages == 0


@pytest.mark.parametrize("kv", [*(spelled(name, 400) for name in KINDS), "quest(pages=100)", "quest(pages=1.0)"])
def test_a_budget_beyond_the_context_is_exact(make_llm, mixed, kv) -> None:
    llm = make_llm(mixed, page_size=8)
    exact, lossy = (llm.generate(PROMPTS, params(text)) for text in ("exact", kv))
    assert [output.token_ids for output in lossy] == [output.token_ids for output in exact]


def kept_at_each_token(num_prompt: int, num: int, budget: int, every: int, sinks: int) -> list[list[int]]:
    """Positions that each query of a full layer sees under streaming_llm, in words of its own."""
    seen, held = [], list[int]()
    act = max(num_prompt, budget)
    for token in range(num):
        held.append(token)
        seen.append(list(held))
        if token + 1 == act:
            newest = budget - every - sinks
            held, act = held[:sinks] + held[len(held) - newest :], act + every
    return seen


def test_answers_are_those_of_transformers_with_dropped_tokens_masked_in_full_layers(make_llm, mixed) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    kv, ids = "streaming_llm(budget=20, every=6, sinks=3)", prompt(43, 50)
    answer = make_llm(mixed, page_size=8).generate([ids], params(kv, 40))[0].token_ids
    exact = make_llm(mixed, page_size=8).generate([ids], params("exact", 40))[0].token_ids
    tokens, most = [*ids, *answer], torch.finfo(torch.float32).min
    masks = torch.full((2, 1, 1, len(tokens), len(tokens)), most)
    for token, seen in enumerate(kept_at_each_token(50, len(tokens), 20, 6, 3)):
        masks[0, ..., token, seen] = 0
        masks[1, ..., token, max(0, token - 15) : token + 1] = 0
    model = AutoModelForCausalLM.from_pretrained(mixed, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        both = dict(zip(("full_attention", "sliding_attention"), masks, strict=True))
        logits = model(torch.tensor([tokens]), attention_mask=both, use_cache=False).logits[0]
    assert logits.argmax(-1)[49:-1].tolist() == answer
    assert answer != exact, "what was dropped did not matter, so nothing was shown"


@pytest.mark.parametrize("kv", ["quest(pages=2)", "lserve(pages=2)", "tokenselect(pages=2)", "shadowkv(pages=2)",
                                "ltri_llm(pages=2)", "snapkv(budget=24, window=8)+quest(pages=2)"])  # fmt: skip
def test_selections_read_windowed_layers_whole_in_programs_and_layer_by_layer(make_llm, mixed, kv, monkeypatch) -> None:
    llm = make_llm(mixed, page_size=8)
    before = llm.stats()["steps"]
    answers = [output.token_ids for output in llm.generate(PROMPTS, params(kv, 30))]
    steps = llm.stats()["steps"]
    held, read = (steps[name] - before[name] for name in ("pages_held", "pages_read"))
    assert held / 2 < read < held
    exact = [output.token_ids for output in llm.generate(PROMPTS, params("exact", 30))]
    assert answers != exact, "what was not read did not matter, so nothing was shown"
    monkeypatch.setattr("pagoda.kv.view.StepView.arrays", lambda self: None)
    slow = [output.token_ids for output in make_llm(mixed, page_size=8).generate(PROMPTS, params(kv, 30))]
    assert slow == answers


@pytest.mark.parametrize("name", ["streaming_llm", "h2o", "ada", "hashevict"])
def test_same_tokens_whatever_happens_around(make_llm, mixed, name) -> None:
    """Alone; then in small chunks, in a pool that pushes sequences out, beside other policies, with a warm cache."""
    wanted = [params(spelled(name, budget), 14) for budget in (9, 16, 0.5)]
    calm = make_llm(mixed, page_size=8)
    alone = [calm.generate([ids], param)[0].token_ids for ids, param in zip(PROMPTS, wanted, strict=True)]
    small = {"kv_memory": 13 * 2 * 2 * 2 * 16 * 4 * 8, "max_model_len": 104}
    for options in (small, small | {"enable_prefix_caching": False, "max_num_batched_tokens": 24, "max_num_seqs": 8}):
        llm = make_llm(mixed, page_size=8, **options)
        for _ in range(2):
            found = llm.generate([*PROMPTS, prompt(60, 40)], [*wanted, params("int8+quest(pages=2)", 14)])
            assert [output.token_ids for output in found[:3]] == alone, options


@pytest.mark.parametrize("kv", [*(spelled(name, 12) for name in KINDS[:4]), "quest(pages=2)", "snapkv(budget=12)+int4"])
def test_preempted_aborted_forked(make_llm, mixed, kv) -> None:
    check_interrupted(partial(make_llm, mixed), PROMPTS, PROMPTS[0], params(kv, 24))


def test_what_needs_all_layers_is_refused_by_name(make_llm, mixed) -> None:
    llm = make_llm(mixed)
    calibrate_at_random(mixed, num_layers=4, num_heads=2, head_dim=8)
    for kv, words in (
        ("duo_attention", "duo_attention is calibrated to all layers together"),
        ("lychee_decode", "lychee_decode is calibrated to all layers together"),
        ("snapkv(budget=12)+kivi", "kivi encodes pages that hold the same tokens in all layers"),
    ):
        with pytest.raises(RequestError, match=f"2 of 4 may lose slots .*: {words}; accepted: exact, and codecs"):
            llm.generate([PROMPTS[0]], params(kv))
    assert make_llm(mixed, max_model_len=16).generate([PROMPTS[1][:9]], params("duo_attention", 4))[0].token_ids
