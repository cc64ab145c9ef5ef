"""Many requests at once: mixed lengths, aborts, preemption, slow readers, and a death of the engine."""

from __future__ import annotations

import asyncio
import random

import pytest

from pagoda import AsyncLLM, EngineClosedError, RequestError, SamplingParams
from pagoda.core.types import FinishReason

from .conftest import kv_bytes
from .tiny import prompt


def options(**changes):
    return {"memory": "2GiB", "kv_memory": kv_bytes(48), "page_size": 8, "max_num_seqs": 16, "num_threads": 1} | changes


def test_a_mixed_crowd(tiny, oracle) -> None:
    """Every request ends; those that are not aborted have the tokens that they have alone."""
    rng = random.Random(7)
    shared = prompt(90, 40)
    work = []
    for index in range(60):
        ids = prompt(100 + index, rng.choice([1, 3, 17, 60, 140]))
        if index % 3 == 0:
            ids = shared[: rng.randrange(8, 40)] + ids[:20]
        work.append((ids, rng.randrange(1, 40), index % 7 == 5))

    async def one(llm: AsyncLLM, ids: list[int], num: int, gives_up: bool):
        await asyncio.sleep(rng.random() * 0.05)  # faster than they are answered, so that some wait
        last = None
        stream = llm.generate(ids, SamplingParams(temperature=0, max_tokens=num, ignore_eos=True))
        async for output in stream:
            last = output
            if gives_up:
                break
        await stream.aclose()
        return last

    async def crowd():
        async with AsyncLLM(str(tiny), **options(kv_memory=kv_bytes(28))) as llm:
            answers = await asyncio.gather(*(one(llm, *item) for item in work))
            await llm.audit()
            return answers, await llm.stats()

    answers, stats = asyncio.run(crowd())
    for (ids, num, gives_up), answer in zip(work, answers, strict=True):
        if gives_up:
            assert answer.token_ids == oracle(ids, num)[: len(answer.token_ids)]
        else:
            assert answer.finish_reason is FinishReason.LENGTH
            assert answer.token_ids == oracle(ids, num)
    assert stats["queue"]["preemptions"] > 0
    assert stats["queue"]["running"] == stats["queue"]["waiting"] == 0
    assert stats["kv"]["num_sequences"] == 0
    assert stats["kv"]["prefix"]["num_hit_pages"] > 0


def test_a_slow_reader_misses_nothing(tiny) -> None:
    async def read():
        async with AsyncLLM(str(tiny), **options()) as llm:
            text, num_outputs = "", 0
            async for output in llm.generate(prompt(1, 9), SamplingParams(seed=1, max_tokens=30, ignore_eos=True)):
                await asyncio.sleep(0.02 if num_outputs else 0.5)  # most of what follows is there by then
                text, num_outputs = text + output.delta, num_outputs + 1
            assert num_outputs < 30
            return text, llm.tokenizer.decode(output.token_ids)

    text, whole = asyncio.run(read())
    assert text == whole


def test_abort_by_id_and_bad_requests(tiny) -> None:
    async def scene():
        async with AsyncLLM(str(tiny), **options()) as llm:
            params = SamplingParams(temperature=0, max_tokens=250, ignore_eos=True)
            stream = llm.generate(prompt(1, 9), params, request_id="mine")
            first = await anext(stream)
            with pytest.raises(RequestError, match="already running"):
                await anext(llm.generate(prompt(2, 9), params, request_id="mine"))
            for bad in ([], [999], [-1], [1.5], prompt(3, 600)):
                with pytest.raises(RequestError):
                    await anext(llm.generate(bad, params))
            await llm.abort("mine")
            await llm.abort("nobody")
            async for output in stream:
                last = output
            assert len(last.token_ids) >= len(first.token_ids)
            return last

    assert asyncio.run(scene()).finish_reason is FinishReason.ABORT


def test_close_ends_open_requests_with_an_error(tiny) -> None:
    async def scene():
        llm = AsyncLLM(str(tiny), **options())
        stream = llm.generate(prompt(1, 9), SamplingParams(max_tokens=300, ignore_eos=True))
        await anext(stream)
        await llm.close()
        with pytest.raises(EngineClosedError):
            async for _ in stream:
                pass
        with pytest.raises(EngineClosedError):
            await anext(llm.generate(prompt(1, 9)))
        await llm.close()

    asyncio.run(scene())


def test_a_death_of_the_engine_is_told_to_everybody(tiny, monkeypatch) -> None:
    async def scene():
        llm = AsyncLLM(str(tiny), **options())
        stream = llm.generate(prompt(1, 9), SamplingParams(max_tokens=300, ignore_eos=True))
        await anext(stream)

        def broken():
            raise MemoryError("the scheduler lost its mind")

        monkeypatch.setattr(llm._built.engine.scheduler, "schedule", broken)
        with pytest.raises(EngineClosedError, match="lost its mind"):
            async for _ in stream:
                pass
        await llm.close()

    asyncio.run(scene())


def test_a_step_that_fails_ends_its_requests_and_nobody_elses(tiny, oracle, monkeypatch) -> None:
    async def scene():
        async with AsyncLLM(str(tiny), **options()) as llm:
            runner = llm._built.engine._runner
            run, fail = runner.run, [True]

            def sometimes(plan, *more):
                if fail and any(s.item.tokens[0] == 7 for s in plan.scheduled):
                    fail.clear()
                    raise RuntimeError("a kernel gave up")
                return run(plan, *more)

            monkeypatch.setattr(runner, "run", sometimes)
            params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
            bad = await llm.generate_one([7, 8, 9], params)
            good = await llm.generate_one([7, 8, 9], params)
            await llm.audit()
            return bad, good

    bad, good = asyncio.run(scene())
    assert bad.finish_reason is FinishReason.ERROR
    assert "a kernel gave up" in bad.error
    assert good.token_ids == oracle([7, 8, 9], 10)
