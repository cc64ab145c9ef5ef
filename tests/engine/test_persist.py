"""Prefixes that outlive their engine: found again, exact, and never worse than computing anew."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.core.errors import ConfigError
from pagoda.kv.tiers.disk import VERSION

from .tiny import VOCAB, make_model

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
Oracle = Callable[[list[int], int], list[int]]


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def open_tiny(tiny: Path, folder: Path, **options: Any) -> LLM:
    return LLM(str(tiny), memory="3GiB", structured_output=False, kv_dir=str(folder), **options)


def records(folder: Path) -> list[Path]:
    return sorted((folder / VERSION).rglob("*.kv"))


def files(folder: Path) -> list[Path]:
    """One name of each: records of pages that follow each other share a file."""
    return list({path.stat().st_ino: path for path in records(folder)}.values())


def answer(llm: LLM, ids: list[int], **params: Any) -> tuple[list[int], int]:
    """(tokens, cached prompt tokens) of one greedy answer."""
    out = llm.generate([ids], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, **params))[0]
    return out.outputs[0].token_ids, out.usage.cached_tokens


@pytest.mark.parametrize("granularity", ["sequence", "layer", "head"])
def test_a_prefix_is_found_after_a_restart(tiny: Path, tmp_path: Path, oracle: Oracle, granularity: str) -> None:
    ids = prompt(100)
    with open_tiny(tiny, tmp_path, granularity=granularity) as llm:
        assert answer(llm, ids) == (oracle(ids, 12), 0)
    assert len(records(tmp_path)) == (100 + 11) // 16
    assert len(files(tmp_path)) == 1, "they became full in one step"
    with open_tiny(tiny, tmp_path) as llm:
        assert answer(llm, ids) == (oracle(ids, 12), 96)
        longer = ids + oracle(ids, 12) + prompt(20, 1)
        assert answer(llm, longer)[0] == oracle(longer, 12)
        assert answer(llm, ids[:50])[1] == 48
        stats = llm.stats()["disk"]
        assert (stats["num_restored"], stats["disk_num_corrupt"]) == (6, 0)
        llm._built.audit()


def test_pages_of_another_model_format_or_tenant_are_misses(tiny: Path, tmp_path: Path) -> None:
    ids = prompt(60)
    with open_tiny(tiny, tmp_path) as llm:
        answer(llm, ids)
    other = make_model(tmp_path / "other", seed=5)
    for changes in ({"model": other}, {"kv_cache_dtype": "int8"}, {"dtype": "bfloat16"}, {"page_size": 32}):
        with open_tiny(changes.pop("model", tiny), tmp_path, **changes) as llm:
            assert answer(llm, ids)[1] == 0, changes
    with open_tiny(tiny, tmp_path) as llm:
        assert answer(llm, ids)[1] == 48


@pytest.mark.parametrize("cut", [False, True])
def test_corrupt_and_missing_pages_are_computed_again(tiny: Path, tmp_path: Path, oracle: Oracle, cut: bool) -> None:
    ids = prompt(100)
    with open_tiny(tiny, tmp_path) as llm:
        answer(llm, ids)
    for path in files(tmp_path):
        data = bytearray(path.read_bytes())
        for at in range(40, len(data), 1000):
            data[at] ^= 255
        path.write_bytes(data[: len(data) // 2] if cut else data)
    with open_tiny(tiny, tmp_path) as llm:
        assert answer(llm, ids) == (oracle(ids, 12), 0)
        assert llm.stats()["disk"]["disk_num_corrupt"] >= 1
    with open_tiny(tiny, tmp_path) as llm:
        assert answer(llm, ids) == (oracle(ids, 12), 96), "what was wrong has been written again"


def test_a_disk_that_fails_costs_nothing_but_the_cache(
    tiny: Path, tmp_path: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pagoda.kv.tiers._files import Files

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "write_whole", fail)
    ids = prompt(100)
    with open_tiny(tiny, tmp_path) as llm:
        assert answer(llm, ids)[0] == oracle(ids, 12)
        assert answer(llm, ids) == (oracle(ids, 12), 96)
    assert not records(tmp_path)


def test_the_folder_keeps_its_budget(tiny: Path, tmp_path: Path) -> None:
    with open_tiny(tiny, tmp_path, disk="64KiB") as llm:
        for seed in range(8):
            answer(llm, prompt(120, seed))
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) <= 65536


def test_what_left_memory_comes_back_from_disk(tiny: Path, tmp_path: Path, oracle: Oracle) -> None:
    """A conversation's KV survives other requests that need all pages."""
    with open_tiny(tiny, tmp_path, kv_memory="128KiB", max_model_len=400) as llm:
        first = prompt(150)
        answer(llm, first)
        assert llm._built.engine.persistence.settle(60)
        for seed in range(1, 5):
            answer(llm, prompt(300, seed))
        llm._built.engine.manager.clear_prefix()
        assert answer(llm, first) == (oracle(first, 12), 144)
        llm._built.audit()


def test_preempted_sequences_end_with_the_same_tokens(tiny: Path, tmp_path: Path, oracle: Oracle) -> None:
    asked = [prompt(120, seed) for seed in range(6)]
    with open_tiny(tiny, tmp_path, kv_memory="128KiB", max_model_len=400) as llm:
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        outputs = llm.generate(asked, params)
        assert [o.outputs[0].token_ids for o in outputs] == [oracle(ids, 40) for ids in asked]
        assert llm.stats()["memory"]["accounts"]["staging"]["leased_bytes"] == (16 << 20) * 2
        llm._built.audit()


@pytest.mark.parametrize("codec", ["int8", "cachegen(step=0.05)"])
def test_a_smaller_form_on_disk_is_its_own_and_near(tiny: Path, tmp_path: Path, codec: str, oracle: Oracle) -> None:
    """Found again by who asks for it, never by who asks for exact pages; and the next token is nearly as likely."""
    ids = prompt(100)
    with open_tiny(tiny, tmp_path, kv_dir_codec=codec) as llm:
        exact = llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, logprobs=20))[0]
        size = sum(path.stat().st_size for path in files(tmp_path))
    with open_tiny(tiny, tmp_path) as llm:
        assert answer(llm, ids) == (oracle(ids, 12), 0)
    assert size < 0.5 * (sum(path.stat().st_size for path in files(tmp_path)) - size)
    with open_tiny(tiny, tmp_path, kv_dir_codec=codec) as llm:
        near = llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, logprobs=20))[0]
        assert near.usage.cached_tokens == 96
        was, now = (dict(one.outputs[0].logprobs[0].top) for one in (exact, near))
        both = was.keys() & now.keys()
        assert len(both) > 15
        assert sum(math.exp(was[token]) * abs(was[token] - now[token]) for token in both) < 0.2  # other pages: above 1
        assert llm.stats()["disk"]["disk_codec"] == codec


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_what_left_the_pool_is_kept_packed_in_memory(tiny: Path, oracle: Oracle, codec: str) -> None:
    options: dict[str, Any] = {"kv_memory": "128KiB", "max_model_len": 400, "kv_host": "2MiB", "kv_host_codec": codec}
    with LLM(str(tiny), memory="3GiB", structured_output=False, **options) as llm:
        first = prompt(150)
        answer(llm, first)
        for seed in range(1, 5):
            assert llm._built.engine.persistence.settle(60)
            answer(llm, prompt(300, seed))
        llm._built.engine.manager.clear_prefix()
        tokens, cached = answer(llm, first)
        assert cached == 144
        assert codec != "exact" or tokens == oracle(first, 12)
        assert llm._built.engine.persistence.settle(60)  # the last answer's pages are still being packed
        stats, account = llm.stats()["disk"], llm.stats()["memory"]["accounts"]["cache"]
        assert account["leased_bytes"] == 2 << 20
        assert 0 < stats["host_used_bytes"] == account["resident_bytes"] <= 2 << 20
        assert (stats["num_restored"], "used_bytes" in stats) == (9, False)
        llm._built.audit()


def test_exact_in_memory_and_smaller_on_disk(tiny: Path, tmp_path: Path, oracle: Oracle) -> None:
    """Each place has a codec of its own; who asks for another in memory finds none of the pages."""
    ids = prompt(150)
    with open_tiny(tiny, tmp_path, kv_host="2MiB", kv_dir_codec="cachegen") as llm:
        answer(llm, ids)
        assert llm._built.engine.persistence.settle(60)
        llm._built.engine.manager.clear_prefix()
        assert answer(llm, ids) == (oracle(ids, 12), 144)
        stats = llm.stats()["disk"]
        assert (stats["host_codec"], stats["disk_codec"]) == ("exact", "cachegen")
        assert (stats["host_num_hits"], stats["disk_num_hits"]) == (9, 0)
        assert stats["used_bytes"] < stats["host_used_bytes"] / 2
    with open_tiny(tiny, tmp_path, kv_host="2MiB", kv_host_codec="int8", kv_dir_codec="cachegen") as llm:
        assert answer(llm, ids) == (oracle(ids, 12), 0)
    with open_tiny(tiny, tmp_path, kv_dir_codec="cachegen") as llm:
        assert answer(llm, ids)[1] == 144


@pytest.mark.parametrize("place", ["none", "host", "disk"])
def test_conversations_in_turns_find_what_left_the_pool(tiny: Path, tmp_path: Path, oracle: Oracle, place: str) -> None:
    """Four of them take turns in a pool for one: with a tier every full page of every turn before is found."""
    options: dict[str, Any] = {"kv_memory": "64KiB", "max_model_len": 200}
    options |= {"none": {}, "host": {"kv_host": "2MiB"}, "disk": {"kv_dir": str(tmp_path)}}[place]
    texts, shares = [prompt(60, seed) for seed in range(4)], []
    with LLM(str(tiny), memory="3GiB", structured_output=False, **options) as llm:
        for turn in range(3):
            for number, ids in enumerate(texts):
                tokens, cached = answer(llm, ids)
                assert tokens == oracle(ids, 12)
                if turn:
                    shares.append((cached, (len(ids) - 20 - 1) // 16 * 16))  # all but the question and the last token
                texts[number] = ids + tokens + prompt(20, 100 * turn + number)
                if place != "none":
                    assert llm._built.engine.persistence.settle(60)
        llm._built.audit()
    if place == "none":
        assert sum(cached for cached, _ in shares) < sum(kept for _, kept in shares) / 4
    else:
        assert [cached for cached, _ in shares] == [kept for _, kept in shares]


def test_what_is_slower_to_read_is_computed(tiny: Path, tmp_path: Path, oracle: Oracle) -> None:
    ids = prompt(100)
    with open_tiny(tiny, tmp_path) as llm:
        answer(llm, ids)
    for rate, cached, recomputed in ((1.0, 0, 1), (1e12, 96, 0)):
        with open_tiny(tiny, tmp_path) as llm:
            engine = llm._built.engine
            engine.persistence._cost.bytes_per_second["disk"], engine._tokens_per_second = rate, 1e5
            assert answer(llm, ids) == (oracle(ids, 12), cached)
            assert llm.stats()["disk"]["num_recomputed"] == recomputed


def test_a_pinned_prefix_stays_on_disk_before_others(tiny: Path, tmp_path: Path) -> None:
    import asyncio

    from pagoda import AsyncLLM

    first = prompt(64)

    async def scene() -> None:
        async with AsyncLLM(
            str(tiny), memory="3GiB", structured_output=False, kv_dir=str(tmp_path), disk="64KiB"
        ) as llm:
            await llm.generate_one(first, GREEDY)
            assert await llm.pin(first, ttl=600) is not None
            for seed in range(1, 9):
                await llm.generate_one(prompt(120, seed), GREEDY)

    asyncio.run(scene())
    with open_tiny(tiny, tmp_path, disk="64KiB") as llm:
        assert answer(llm, first)[1] == 48
        assert answer(llm, prompt(120, 1))[1] == 0  # whose place was needed


def test_options_that_make_no_sense_are_refused(tiny: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"kv_dir": None, "disk": "1GiB"}, "no kv_dir says where"),
        ({"disk": "0"}, "above 0"),
        ({"disk": "4000TiB"}, "has room for"),
        ({"kv_ttl": -1.0}, "seconds above 0"),
        ({"kv_host": 0}, "kv_host is 0"),
        ({"kv_dir_codec": "int5"}, "cachegen, int8"),
        ({"kv_dir_codec": "cachegen(step=9)"}, "from 0.02 to 2"),
        ({"kv_dir_codec": "int8", "kv_dir": None, "kv_host": "1MiB"}, "kv_dir_codec is 'int8', but there is no kv_dir"),
        ({"kv_host_codec": "int8"}, "kv_host_codec is 'int8', but there is no kv_host"),
        ({"kv_host_codec": "zip", "kv_host": "1MiB"}, "cachegen, int8"),
        ({"kv_dir_codec": "int8", "kv_cache_dtype": "int8"}, "are small already"),
        ({"enable_prefix_caching": False}, "switched off"),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM(str(tiny), memory="3GiB", structured_output=False, **{"kv_dir": str(tmp_path), **options})


def test_texts_may_be_thousands_of_pages_deep(tmp_path: Path) -> None:
    """Names on disk are chained; the chain is longer than Python's stack, and may have been forgotten."""
    from pagoda.kv import persist

    deep = make_model(tmp_path / "deep", max_position_embeddings=32768)
    ids = prompt(8 * 1050)
    with open_tiny(deep, tmp_path, page_size=8) as llm:
        answer(llm, ids)
        llm._built.engine.persistence._keys.clear()
        assert persist.MOST_KEYS > 1050
        assert answer(llm, ids + prompt(20, 1))[1] >= len(ids) - 8
    with open_tiny(deep, tmp_path, page_size=8) as llm:
        assert answer(llm, ids)[1] == len(ids) - 8
        llm._built.engine.persistence._keys.clear()
        assert answer(llm, ids + prompt(20, 2))[1] >= len(ids) - 8


def test_what_was_preempted_is_read_again_before_its_turn(tiny: Path, tmp_path: Path, oracle: Oracle) -> None:
    """Its pages are in memory when it is preempted, and leave for others' while it waits."""
    low, high = prompt(150), [prompt(150, seed) for seed in (1, 2, 3)]
    with open_tiny(tiny, tmp_path) as llm:
        block = llm._built.engine.manager.fmt.block_bytes
    (folder := tmp_path / "kept").mkdir()
    options = {"kv_memory": 14 * block, "max_model_len": 200, "max_num_seqs": 1, "scheduling": "priority"}
    with open_tiny(tiny, folder, **options) as llm:
        engine, intake = llm._built.engine, llm._intake
        engine.add(intake.request("low", low, GREEDY, priority=1))
        for _ in range(4):
            engine.step()
        assert engine.persistence.settle(10)
        for number, ids in enumerate(high):
            engine.add(intake.request(f"high-{number}", ids, GREEDY))
        answers = {}
        while engine.has_work:
            answers |= {out.request_id: out for out in engine.step() if out.finished}
        assert answers["low"].num_preemptions == 1
        assert answers["low"].outputs[0].token_ids == oracle(low, 12)
        assert llm.stats()["disk"]["num_restored"] >= 9  # all full pages of its prompt
        llm._built.audit()
