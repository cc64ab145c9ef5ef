"""Text is made by its reader where it decides nothing, and is the same whoever makes it, and when."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pagoda import AsyncLLM, SamplingParams
from pagoda.engine.text import TextStream
from pagoda.models.resolve import resolve
from pagoda.models.tokenizer import Tokenizer

STORY = "Once upon a time, a girl 😀 said: déjà vu!"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(resolve("lantern"))


@pytest.mark.parametrize("every", [1, 2, 7, 1000])
def test_reading_late_gives_the_same_text(tokenizer: Tokenizer, every: int) -> None:
    ids = tokenizer.encode(STORY, add_special_tokens=False)
    stream, told = TextStream.of(tokenizer, SamplingParams()), ""
    for end in range(every, len(ids) + every, every):
        text, delta = stream.read(ids[:end], ended=end >= len(ids))
        told += delta
        assert told == text
    assert told == STORY
    assert stream.read(ids, ended=True) == (STORY, "")


def test_only_stop_strings_decide(tokenizer: Tokenizer) -> None:
    assert TextStream.of(tokenizer, SamplingParams(stop="x")).decides
    assert not TextStream.of(tokenizer, SamplingParams(stop_token_ids=[5], min_tokens=3)).decides


@pytest.mark.parametrize(("stop", "thread"), [(None, "MainThread"), ("zebra", "pagoda-engine")])
def test_tokens_become_text_beside_the_steps(monkeypatch: pytest.MonkeyPatch, stop: str | None, thread: str) -> None:
    threads: set[str] = set()
    push = TextStream.push

    def watched(self: TextStream, token_id: int, num_output: int) -> str | None:
        threads.add(threading.current_thread().name)
        return push(self, token_id, num_output)

    monkeypatch.setattr(TextStream, "push", watched)

    async def told() -> str:
        async with AsyncLLM("lantern", memory="3GiB") as llm:
            params = SamplingParams(temperature=0, max_tokens=12, stop=stop)
            return "".join([output.delta async for output in llm.generate("Once upon a time", params)])

    assert len(asyncio.run(told())) > 12
    assert threads == {thread}
