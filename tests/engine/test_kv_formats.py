"""Pages of several formats in one engine: each request names its own, and all share one budget."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda import ConfigError, SamplingParams
from pagoda.core.errors import RequestError
from pagoda.kv.codecs import CODECS
from pagoda.kv.grammar import parse_policy

from .conftest import kv_bytes
from .tiny import prompt

PROMPTS = [prompt(1, 5), prompt(2, 33), prompt(3, 70), prompt(4, 50)]
COMPOSED = ["snapkv(budget=12, window=8)+int8", "recent(budget=10)+int4", "h2o(budget=10)+fp8", "int8+quest(pages=2)",
            "streaming_llm(budget=16)+fp8+quest(pages=1)"]  # fmt: skip


def params(kv: str, num: int = 16, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv, **more)


@pytest.mark.parametrize("name", CODECS.names())
def test_a_codec_by_request_is_the_codec_of_the_engine(make_llm: Any, name: str) -> None:
    of_engine = make_llm(kv_cache_dtype=name, page_size=8).generate(PROMPTS, params("exact"))
    of_request = make_llm(page_size=8).generate(PROMPTS, params(name))
    assert [o.token_ids for o in of_request] == [o.token_ids for o in of_engine]
    assert [o.memory.peak for o in of_request] == [o.memory.peak for o in of_engine]


def test_all_formats_in_one_batch_each_as_if_alone(make_llm: Any, oracle: Any) -> None:
    """Beside each other, in small chunks, pushed out by each other, with warm caches: each has its own tokens."""
    texts = ["exact", *CODECS.names(), *COMPOSED]
    prompts = [PROMPTS[2 + index % 2] for index in range(len(texts))]
    calm = make_llm(page_size=8)
    alone = [calm.generate([ids], params(kv))[0].token_ids for ids, kv in zip(prompts, texts, strict=True)]
    assert alone[0] == oracle(PROMPTS[2], 16)
    for options in ({}, {"max_num_batched_tokens": 24, "max_num_seqs": 12}, {"kv_memory": kv_bytes(14)}):
        llm = make_llm(page_size=8, max_model_len=104, **options)
        for _ in range(2):
            outputs = llm.generate(prompts, [params(kv) for kv in texts])
            assert [output.token_ids for output in outputs] == alone, options
        stats = llm.stats()
        assert set(stats["kv"]["formats"]) == {"float32", *CODECS.names()}
        leased = sum(one["leased_bytes"] for one in stats["kv"]["formats"].values())
        assert leased == stats["memory"]["accounts"]["kv"]["leased_bytes"]
        assert (stats["queue"]["preemptions"] > 0) == ("kv_memory" in options)


def test_one_format_takes_what_another_does_not_use(make_llm: Any) -> None:
    """A pool of 12 exact blocks is full of cached prefixes when int8 comes, and the other way round."""
    llm = make_llm(page_size=8, kv_memory=kv_bytes(12), max_model_len=96)
    total = kv_bytes(12)
    for kv in ("exact", "int8", "exact", "int4"):
        output = llm.generate([PROMPTS[2]], params(kv, 20))[0]
        assert output.error is None
        assert output.num_preemptions == 0
        formats = llm.stats()["kv"]["formats"]
        assert sum(one["leased_bytes"] for one in formats.values()) <= total
    assert formats["int4"]["leased_bytes"] > 0
    assert formats["float32"]["leased_bytes"] < total, "it kept what int4 needed"


def test_more_sequences_fit_in_fewer_bytes(make_llm: Any) -> None:
    """Six of 72 tokens: float32 pages hold one at a time in ten blocks, int8 (20 bytes a slot, not 64) three."""

    def most_at_once(kv: str) -> int:
        llm = make_llm(page_size=8, kv_memory=kv_bytes(10), max_model_len=80, enable_prefix_caching=False)
        engine, most = llm._open().engine, 0
        for index in range(6):
            engine.add(llm._intake.request(str(index), prompt(90 + index, 64), params(kv, 8)))
        while engine.has_work:
            engine.step()
            most = max(most, sum(s.num_computed >= 64 for s in engine.scheduler.running.values()))
        return most

    assert (most_at_once("exact"), most_at_once("int8")) == (1, 3)


def test_prefixes_are_shared_within_a_format_only(make_llm: Any) -> None:
    llm = make_llm(page_size=8)
    first = llm.generate([PROMPTS[3]], params("int8"))[0]
    again = llm.generate([PROMPTS[3]], params("int8"))[0]
    other = llm.generate([PROMPTS[3]], params("fp8"))[0]
    assert (first.usage.cached_tokens, again.usage.cached_tokens, other.usage.cached_tokens) == (0, 48, 0)
    assert again.token_ids == first.token_ids
    prefix = llm.stats()["kv"]["prefix"]
    assert prefix["num_hit_pages"] == 6, "counted for all formats"


def test_answers_fork_and_leave_nothing(make_llm: Any) -> None:
    llm = make_llm(page_size=8)
    sampled = SamplingParams(n=3, seed=8, max_tokens=10, ignore_eos=True, kv="snapkv(budget=12, window=8)+int8")
    output = llm.generate([PROMPTS[2]], sampled)[0]
    assert len(output.outputs) == 3
    llm._open().audit()
    for store in llm._open().engine.stores:
        store.manager.clear_prefix()
        assert store.manager.pool.num_used_pages == 0


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        ("int8+int4", "int8+int4: a page has one format; name one of them"),
        ("int8+snapkv", "snapkv (eviction) must come first; the order is eviction + allocator + codec + selection"),
        ("quest+int8", "int8 (codec) must come first"),
        ("int8(bits=4)", "int8 has no parameter 'bits'; accepted: no parameters"),
        ("int7", "accepted: a2ats, ada, alisa"),
        ("h2o+int8+quest", "h2o adds up the attention of every query, and quest leaves pages unread"),
    ],
)
def test_what_makes_no_sense_is_refused(make_llm: Any, kv: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_llm().generate([PROMPTS[0]], params(kv))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        ("attendre(top=100000)", "top=100000 would count every slot of every query, since no sequence is longer than"),
        ("compresskv(top=1000)", "top=1000 heads of a layer are to vote, and it has 4; give a number from 1 to 4"),
    ],
)
def test_more_than_the_model_has_is_refused(make_llm: Any, kv: str, words: str) -> None:
    llm = make_llm()
    heads, longest = llm._open().loaded.shape.num_q_heads, llm._open().engine.max_model_len
    assert (heads, longest > 32) == (4, True)
    assert parse_policy("attendre").eviction.why_not(heads, longest) is None  # type: ignore[union-attr]
    assert parse_policy(f"compresskv(top={heads})").eviction.why_not(heads, longest) is None  # type: ignore[union-attr]
    with pytest.raises(RequestError) as caught:
        llm.generate([PROMPTS[0]], params(kv))
    assert f"kv={kv!r}: {words}" in str(caught.value)
