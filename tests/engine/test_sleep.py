"""An engine that sleeps holds no weights and no KV, wakes for whoever asks, and goes on with the same tokens."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from pagoda import AsyncLLM, SamplingParams
from pagoda.core.errors import AsleepError, RequestError
from pagoda.engine.async_llm import FallsAsleep, Woke

IDS = list(range(3, 40))
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


async def ids_of(llm: AsyncLLM) -> list[int]:
    return (await llm.generate_one(IDS, GREEDY)).token_ids


def test_bytes_go_back_and_tokens_stay(tiny: Path) -> None:
    async def scene() -> None:
        events: list[object] = []
        async with AsyncLLM(str(tiny), memory="3GiB") as llm:
            llm.events.subscribe(FallsAsleep, events.append)
            llm.events.subscribe(Woke, events.append)
            before, pin = await ids_of(llm), await llm.pin(IDS)
            assert pin is not None
            held = (await llm.stats())["memory"]["accounts"]
            freed = await llm.sleep()
            assert await llm.sleep() == 0
            stats = await llm.watched(with_picture=True)
            assert stats["asleep"]
            accounts = stats["memory"]["accounts"]
            assert {name for name, one in accounts.items() if one["leased_bytes"]} == {"runtime", "tokenizer"}
            kept = ("runtime", "tokenizer")
            assert freed == sum(one["leased_bytes"] for name, one in held.items() if name not in kept)
            assert llm.loaded.model.weight_bytes == 0
            await llm.audit()
            assert await llm.pin(IDS) is None
            assert await ids_of(llm) == before  # it woke by itself
            assert not (await llm.stats())["asleep"]
            await llm.unpin(pin)  # of a cache that is gone: no error, and not somebody else's
            renewed = await llm.pin(IDS)
            assert renewed is not None
            assert renewed.handle != pin.handle
            assert {name: one["leased_bytes"] for name, one in (await llm.stats())["memory"]["accounts"].items()} == {
                name: one["leased_bytes"] for name, one in held.items()
            }
            assert [type(event) for event in events] == [FallsAsleep, Woke]

    asyncio.run(scene())


def test_who_runs_is_not_disturbed_and_who_comes_at_once_wakes_it_once(tiny: Path) -> None:
    async def scene() -> None:
        async with AsyncLLM(str(tiny), memory="3GiB") as llm:
            stream = llm.generate(IDS, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
            await anext(stream)
            with pytest.raises(RequestError, match="requests are running"):
                await llm.sleep()
            assert len([output async for output in stream]) > 1
            await llm.sleep()
            woken: list[object] = []
            llm.events.subscribe(Woke, woken.append)
            answers = await asyncio.gather(*(ids_of(llm) for _ in range(4)))
            assert answers == [answers[0]] * 4
            assert len(woken) == 1
            await llm.sleep()
            assert await llm.set_budget("2900MiB") == 2900 << 20  # for which it wakes
            assert not llm.is_asleep

    asyncio.run(scene())


def test_weights_that_do_not_come_are_an_error_and_nothing_stays_leased(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")

    async def scene() -> None:
        async with AsyncLLM(str(folder), memory="3GiB") as llm:
            before = await ids_of(llm)
            await llm.sleep()
            leased = (await llm.stats())["memory"]["leased_bytes"]
            weights = next(folder.glob("*.safetensors"))
            whole = weights.read_bytes()
            weights.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(AsleepError, match="cannot wake"):
                await ids_of(llm)
            with pytest.raises(AsleepError, match=weights.name):
                await llm.wake()
            assert (await llm.stats())["memory"]["leased_bytes"] == leased
            assert llm.is_asleep
            weights.write_bytes(whole)
            assert await ids_of(llm) == before

    asyncio.run(scene())
