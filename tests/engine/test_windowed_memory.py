"""Layers with a sliding window give pages back that no query reaches any more, and nobody can tell by the tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import SamplingParams
from pagoda.core.errors import BudgetError, RequestError

from .interrupted import check_interrupted
from .tiny import make_model, prompt

GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "query_pre_attn_scalar": 8,
    "sliding_window_pattern": 6, "num_hidden_layers": 6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True,
}  # fmt: skip
"""Five of six layers have a window."""
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"architectures": ["MistralForCausalLM"]},
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "intermediate_size": 24, "num_hidden_layers": 4,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    },
}  # fmt: skip
WINDOW = 16
LAYERS, HEADS, SIZE = 6, 2, 8
PROMPTS = [prompt(70, 260), prompt(71, 31), prompt(72, 170)]


def params(kv: str = "exact", num: int = 90, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv, **more)


def gemma(folder: Path, **changes: Any) -> Path:
    return make_model(folder, **GEMMA3 | {"sliding_window": WINDOW, "max_position_embeddings": 4096} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return gemma(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module", params=["gemma3", *OTHERS])
def windowed(request, model, tmp_path_factory) -> Path:
    if request.param == "gemma3":
        return model
    name = request.param
    return make_model(tmp_path_factory.mktemp(name), model_type=name, sliding_window=WINDOW, **OTHERS[name])


@pytest.fixture
def keeping_all(make_llm, monkeypatch) -> Any:
    """An LLM whose windowed layers keep what no window reaches."""

    def make(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("pagoda.kv.stores.Windows.of", lambda *_: None)
            llm = make_llm(*args, **options)
            llm._open()
            for codec in ("int8", "fp8", "int4"):
                llm.generate([[1, 2]], params(codec, 1))  # opens the store
            return llm

    return make


def tokens(llm: Any, kv: str = "exact", prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(prompts, params(kv))]


def used(llm: Any) -> int:
    return llm._open().engine.manager.pool.num_used_pages


def most_pages(num_tokens: int, chunk: int = 1) -> int:
    """Of one sequence of the gemma model: windows, what is masked before them, a step, a page that is begun."""
    whole = -(-num_tokens // SIZE)
    return HEADS * (whole + (LAYERS - 1) * min(whole, (WINDOW + 63 + chunk) // SIZE + 1))


@pytest.mark.parametrize(
    ("windowed", "kv"),
    [
        ("gemma3", "exact"),
        ("gemma3", "int8"),
        ("gemma3", "fp8"),
        ("mistral", "exact"),
        ("mistral", "int4"),
        ("gpt_oss", "exact"),
    ],
    indirect=["windowed"],
)
def test_tokens_are_those_of_layers_that_keep_all(make_llm, keeping_all, windowed, kv) -> None:
    whole = tokens(keeping_all(windowed, page_size=SIZE), kv)
    for options in ({}, {"max_num_batched_tokens": 16, "max_num_seqs": 3}, {"granularity": "head"}, {"page_size": 128}):
        llm = make_llm(windowed, **{"page_size": SIZE, "max_model_len": 384} | options)
        assert tokens(llm, kv) == whole, options
        assert tokens(llm, kv) == whole, "with a warm cache"
    block_bytes = llm._open().engine.manager.fmt.block_bytes * SIZE // 128
    small = {"kv_memory": 48 * block_bytes, "max_model_len": 384}
    for options in (small, small | {"enable_prefix_caching": False, "max_num_batched_tokens": 24, "max_num_seqs": 8}):
        assert tokens(make_llm(windowed, page_size=SIZE, **options), kv) == whole, options


@pytest.mark.parametrize("kv", ["exact", "int8"])
def test_preempted_aborted_forked(make_llm, windowed, kv) -> None:
    check_interrupted(partial(make_llm, windowed), PROMPTS, PROMPTS[0], params(kv, 60))


def test_beams_are_those_of_layers_that_keep_all(make_llm, keeping_all, model) -> None:
    beams = SamplingParams(beam_width=3, n=3, max_tokens=80, temperature=0, ignore_eos=True)
    found = [
        [answer.token_ids for answer in make(model, page_size=SIZE).generate([PROMPTS[2]], beams)[0].outputs]
        for make in (make_llm, keeping_all)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("head_dim", "dtype", "kv"),
    [(8, "float32", "exact"), (8, "float32", "int8"), (8, "bfloat16", "fp8"), (64, "float32", "int4"),
     (64, "bfloat16", "exact"), (64, "bfloat16", "int8"), (64, "bfloat16", "int4")],
)  # fmt: skip
def test_nothing_is_read_of_what_is_gone(make_llm, keeping_all, tmp_path, dtype, kv, head_dim) -> None:
    """Whatever is free is no number."""
    folder = gemma(tmp_path / "m", head_dim=head_dim)
    ways = {"page_size": 16, "dtype": dtype, "kv_memory": "8MiB", "enable_prefix_caching": False}
    ways |= {"max_num_batched_tokens": 48, "max_num_seqs": 3}
    whole = tokens(keeping_all(folder, **ways), kv)
    llm = make_llm(folder, **ways)
    engine, intake = llm._open().engine, llm._intake
    for index, ids in enumerate(PROMPTS):
        engine.add(intake.request(str(index), ids, params(kv)))
    done, poisoned = {}, set[int]()
    while engine.has_work:
        done.update((output.request_id, output) for output in engine.step())
        for store in engine.stores:
            free = torch.from_numpy((store.manager.pool.refs == 0).nonzero()[0])
            free = free[free < len(store.storage.pages)]
            store.storage.pages.view(torch.uint8)[free] = 0xFF
            poisoned.update(free[:1].tolist())
    assert [done[str(index)].token_ids for index in range(3)] == whole
    assert 0 in poisoned, "what cells without a page name was never poisoned"


@pytest.mark.parametrize("prefix", [True, False])
def test_pages_are_given_back_while_a_request_runs_and_others_take_them(make_llm, model, prefix) -> None:
    llm = make_llm(model, page_size=SIZE, max_num_batched_tokens=64, max_num_seqs=4, enable_prefix_caching=prefix)
    engine, intake = llm._open().engine, llm._intake
    pool = engine.manager.pool
    engine.add(intake.request("long", prompt(73, 400), params(num=100), stream=True))
    peak = 0
    while engine.has_work:
        engine.step()
        for sequence in engine.scheduler.running.values():
            table = engine.manager.table(sequence.seq_id)
            chunk = 64 if sequence.num_computed <= 400 else 1
            assert table.num_pages <= most_pages(sequence.num_computed, 1)
            assert table.num_pages * engine.manager.fmt.page_bytes == engine.manager.held_bytes(sequence.seq_id)
            peak = max(peak, table.num_pages)
            if not prefix:
                assert pool.num_used_pages <= most_pages(sequence.num_computed, chunk)
    assert peak < 0.35 * LAYERS * HEADS * -(-500 // SIZE)
    engine.manager.clear_prefix()
    assert pool.num_used_pages == 0


def test_a_pool_runs_nearly_three_times_as_many_sequences(make_llm, keeping_all, model) -> None:
    """Beside cached prefixes, of long contexts: what the windows do not reach makes room for others."""
    fmt_bytes = LAYERS * HEADS * 16 * 4 * SIZE  # of a block
    ways = {"page_size": SIZE, "kv_memory": 200 * fmt_bytes, "max_model_len": 640, "max_num_batched_tokens": 64}
    most = {}
    for name, make in (("whole", keeping_all), ("windows", make_llm)):
        llm = make(model, max_num_seqs=16, **ways)
        engine, intake = llm._open().engine, llm._intake
        for index in range(9):
            engine.add(intake.request(str(index), prompt(80 + index, 500), params(num=60)))
        running = []
        while engine.has_work:
            engine.step()
            running.append(len(engine.scheduler.running))
        most[name] = max(running), engine.scheduler.num_preemptions
    assert most["whole"][0] == 3, "500 tokens are 63 of 200 blocks"
    assert most["windows"][0] >= 1.8 * 3
    assert most["windows"][1] <= most["whole"][1]


def test_a_budget_holds_longer_contexts(make_llm, keeping_all, model) -> None:
    """By the other five layers' share; what a step and a page take beside windows counts."""
    block_bytes = LAYERS * HEADS * 16 * 4 * SIZE
    ways = {"page_size": SIZE, "kv_memory": 100 * block_bytes, "max_num_batched_tokens": 32, "max_num_seqs": 4}
    llm = make_llm(model, **ways)
    longest = LAYERS * 100 * SIZE - (LAYERS - 1) * (WINDOW + 32 + 128)
    assert llm._open().engine.max_model_len == min(4096, longest)
    ids = prompt(74, 2500)
    output = llm.generate([ids], params(num=50))[0]
    roomy = keeping_all(model, **ways | {"kv_memory": "8MiB"})
    assert output.token_ids == roomy.generate([ids], params(num=50))[0].token_ids
    assert output.memory.peak <= 100 * block_bytes
    with pytest.raises(RequestError, match=rf"{longest}|need .* of KV"):
        llm.generate([prompt(75, longest)], params(num=50))
    stated = make_llm(model, **ways | {"max_model_len": longest})
    assert stated._open().engine.max_model_len == longest
    with pytest.raises(BudgetError, match=f"{longest + 64} tokens"):
        make_llm(model, **ways | {"max_model_len": longest + 64})
    encoded = make_llm(model, kv="kivi", **ways | {"max_model_len": 800})
    assert encoded._open().engine.max_model_len == 800, "pages that are encoded whole stay"
    with pytest.raises(BudgetError, match="808 tokens"):
        make_llm(model, kv="kivi", **ways | {"max_model_len": 808})


def test_a_conversation_finds_its_prefix_again_turn_after_turn(make_llm, model) -> None:
    llm = make_llm(model, page_size=SIZE, kv_memory=200 * LAYERS * HEADS * 16 * 4 * SIZE, max_model_len=640)
    text, answers = prompt(90, 200), []
    for turn in range(3):
        llm.generate([prompt(91 + turn, 500)], params(num=40))  # which needs the pages of what was passed
        (output,) = llm.generate([text], params(num=40))
        answers.append((list(text), output.token_ids))
        if turn:
            known = len(answers[turn - 1][0]) + 40 - 1
            assert output.usage.cached_tokens == known // SIZE * SIZE, f"turn {turn}"
        text = [*text, *output.token_ids, *prompt(95 + turn, 20)]
    assert llm.stats()["kv"]["prefix"]["num_thinned_pages"] > 0
    cold = make_llm(model, page_size=SIZE, enable_prefix_caching=False)
    for asked, answer in answers:
        assert cold.generate([asked], params(num=40))[0].token_ids == answer


def test_models_without_windows_and_contexts_within_them_keep_one_row(make_llm, tiny, tmp_path) -> None:
    wide = gemma(tmp_path / "w", sliding_window=512)
    for folder in (tiny, wide):
        llm = make_llm(folder, page_size=SIZE, max_model_len=512)
        engine, intake = llm._open().engine, llm._intake
        engine.add(intake.request("one", prompt(1, 300), params(num=20)))
        while engine.has_work:
            engine.step()
            for seq_id in engine.manager.seq_ids():
                assert engine.manager.table(seq_id).num_rows == 1
