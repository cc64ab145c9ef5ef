"""Several answers, seeds, stops and log-probabilities through the whole engine."""

from __future__ import annotations

import pytest
import torch

from pagoda import ConfigError, SamplingParams
from pagoda.core.types import FinishReason

from .conftest import kv_bytes
from .tiny import prompt

IDS = prompt(11, 21)


def test_answers_of_one_prompt_share_it_and_differ(make_llm) -> None:
    llm = make_llm(page_size=8)
    output = llm.generate([IDS], SamplingParams(n=4, seed=3, max_tokens=12, ignore_eos=True))[0]
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 4
    assert output.usage.completion_tokens == 48
    stats = llm.stats()
    assert stats["steps"]["tokens_computed"] == 21 + 4 * 11  # the prompt once
    assert stats["kv"]["num_copied_pages"] == 3 * 2 * 2  # its partial page: copied by three of four, per layer and head


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 2}, {"kv_memory": kv_bytes(16), "page_size": 8}])
@pytest.mark.parametrize("prefix", [True, False])
def test_an_answer_depends_on_its_seed_and_index_only(make_llm, options, prefix) -> None:
    params = SamplingParams(n=5, seed=9, max_tokens=20, temperature=1.2, top_p=0.95, ignore_eos=True)
    alone = make_llm().generate([IDS], params)[0]
    llm = make_llm(enable_prefix_caching=prefix, **options)
    crowd = llm.generate([prompt(i, 9 + i) for i in range(6)] + [IDS], params)[-1]
    assert [a.token_ids for a in crowd.outputs] == [a.token_ids for a in alone.outputs]


def test_unseeded_requests_differ(make_llm) -> None:
    outputs = make_llm().generate([IDS, IDS], SamplingParams(max_tokens=16, ignore_eos=True))
    assert outputs[0].token_ids != outputs[1].token_ids


def test_best_of_returns_the_likeliest(make_llm) -> None:
    llm = make_llm()
    every = llm.generate([IDS], SamplingParams(n=6, seed=1, max_tokens=8, logprobs=0, ignore_eos=True))[0]
    best = llm.generate([IDS], SamplingParams(n=2, best_of=6, seed=1, max_tokens=8, ignore_eos=True))[0]
    ranked = sorted(every.outputs, key=lambda a: -sum(lp.logprob for lp in a.logprobs))
    assert [a.token_ids for a in best.outputs] == [a.token_ids for a in ranked[:2]]
    assert [a.index for a in best.outputs] == [0, 1]
    with pytest.raises(ConfigError, match="stream"):
        llm.stream(IDS, SamplingParams(n=1, best_of=2))


def test_logprobs_are_those_of_the_model(make_llm, oracle) -> None:
    output = make_llm(max_num_batched_tokens=16, max_num_seqs=4).generate(
        [IDS], SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    )[0]
    ids = IDS + output.token_ids
    with torch.inference_mode():
        expected = oracle.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for position, report in enumerate(output.logprobs, len(IDS)):
        row = expected[position - 1]
        assert report.token_id == ids[position]
        assert report.rank == 1
        assert report.logprob == pytest.approx(row[ids[position]].item(), abs=1e-4)
        values, tokens = row.topk(3)
        assert [token for token, _ in report.top] == tokens.tolist()
        assert [value for _, value in report.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(IDS)
    for position, report in enumerate(output.prompt_logprobs[1:], 1):
        assert report.token_id == IDS[position]
        assert report.logprob == pytest.approx(expected[position - 1][IDS[position]].item(), abs=1e-4)
        assert len(report.top) == 2


def test_prompt_logprobs_survive_preemption_and_a_warm_prefix_cache(make_llm) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, prompt_logprobs=0, ignore_eos=True)
    prompts = [prompt(20 + i, 40) for i in range(4)]
    calm = make_llm().generate(prompts, params)
    tight = make_llm(kv_memory=kv_bytes(19), page_size=8)
    tight.generate(prompts, SamplingParams(max_tokens=1))
    hurried = tight.generate(prompts, params)
    assert sum(output.num_preemptions for output in hurried) > 0
    for a, b in zip(calm, hurried, strict=True):
        assert [r.logprob for r in a.prompt_logprobs[1:]] == pytest.approx([r.logprob for r in b.prompt_logprobs[1:]])


def greedy_text(llm, num: int = 24):
    return llm.generate([IDS], SamplingParams(temperature=0, max_tokens=num, ignore_eos=True))[0]


def test_stop_strings_are_cut_and_never_leak_into_the_stream(make_llm) -> None:
    llm = make_llm()
    full = greedy_text(llm).text
    stop = full[6:9]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=[stop, "never in there"])
    deltas = [output.delta for output in llm.stream(IDS, params)]
    assert "".join(deltas) == full[: full.index(stop)]
    done = llm.generate([IDS], params)[0]
    assert done.text == full[: full.index(stop)]
    assert done.finish_reason is FinishReason.STOP
    assert done.outputs[0].stop_reason == stop
    shown = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=stop, include_stop_in_output=True)
    assert llm.generate([IDS], shown)[0].text == full[: full.index(stop) + len(stop)]


def test_stop_ids_and_min_tokens(make_llm) -> None:
    llm = make_llm()
    ids = greedy_text(llm).token_ids
    stop = ids[5]
    done = llm.generate([IDS], SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[stop]))[0]
    assert done.token_ids == ids[: ids.index(stop) + 1]
    assert done.outputs[0].stop_reason == stop
    late = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[stop], min_tokens=15)
    assert len(llm.generate([IDS], late)[0].token_ids) >= 15


def test_bias_and_penalties_act(make_llm) -> None:
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=5, logit_bias={77: 100.0}, ignore_eos=True)
    assert llm.generate([IDS], params)[0].token_ids == [77] * 5
    params = SamplingParams(temperature=0, max_tokens=40, frequency_penalty=2.0, presence_penalty=2.0, ignore_eos=True)
    penalized = llm.generate([IDS], params)[0].token_ids
    assert len(set(penalized)) > len(set(greedy_text(llm, 40).token_ids))


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 2}, {"kv_memory": kv_bytes(40), "page_size": 8}])
@pytest.mark.parametrize(("width", "penalty", "early"), [(1, 1.0, False), (3, 1.0, False), (4, 0.5, True)])
def test_beam_search_like_transformers(make_llm, oracle, options, width, penalty, early) -> None:
    prompts = [prompt(30, 7), prompt(31, 30)]
    params = SamplingParams(
        beam_width=width, n=width, max_tokens=10, length_penalty=penalty, early_stopping=early, ignore_eos=False
    )
    outputs = make_llm(**options).generate(prompts, params)
    for ids, output in zip(prompts, outputs, strict=True):
        batch = torch.tensor([ids])
        with torch.inference_mode():
            expected = oracle.model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=10,
                do_sample=False,
                length_penalty=penalty,
                early_stopping=early,
                eos_token_id=257,
                pad_token_id=0,
            )[:, len(ids) :].tolist()
        ends = [row.index(257) + 1 if 257 in row else 10 for row in expected]  # padded with the end token
        assert [a.token_ids for a in output.outputs] == [row[:end] for row, end in zip(expected, ends, strict=True)]
        assert output.memory.held == 0


def test_streamed_text_adds_up(make_llm) -> None:
    llm = make_llm()
    params = SamplingParams(seed=4, n=2, max_tokens=40, temperature=1.5, ignore_eos=True)
    texts = ["", ""]
    for output in llm.stream(IDS, params):
        for answer in output.outputs:
            texts[answer.index] += answer.delta
    assert texts == [answer.text for answer in output.outputs]
    assert texts == [llm.tokenizer.decode(answer.token_ids) for answer in output.outputs]
