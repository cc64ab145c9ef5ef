"""The official OpenAI client, as people have it: sync, async, streams, responses, embeddings, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from .conftest import Running

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
GREEDY = {"model": "lantern", "temperature": 0}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["lantern"]
    assert client.models.retrieve("lantern").owned_by == "pagoda"


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, max_completion_tokens=12, **GREEDY)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    chunks = list(
        client.chat.completions.create(
            messages=MESSAGES, max_completion_tokens=12, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    again = [*MESSAGES, whole.choices[0].message, {"role": "user", "content": "Go on."}]
    assert client.chat.completions.create(messages=again, max_tokens=4, **GREEDY).choices[0].message.content


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(messages=MESSAGES, stop=["."], **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content


def test_completions_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="Once upon a time", max_tokens=4, logprobs=2, echo=True, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 9
    chunks = client.completions.create(prompt="Once upon a time", max_tokens=4, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) in answer.choices[0].text


def test_embeddings_come_as_base64_by_default(client: openai.OpenAI, server: Running) -> None:
    answer = client.embeddings.create(model="lantern", input=["a fox", "a hen"])
    assert [len(item.embedding) for item in answer.data] == [server.service.llm.loaded.shape.hidden_size] * 2
    plain = client.embeddings.create(model="lantern", input="a fox", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)


def test_many_at_once_from_asyncio(server: Running) -> None:
    async def crowd() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    messages=MESSAGES, max_tokens=10, seed=number, stream=True, model="lantern"
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(number % 4) for number in range(24)))

    texts = asyncio.run(crowd())
    assert all(texts)
    assert texts[:4] == texts[4:8] == texts[20:24]


def test_responses_with_and_without_a_previous_one(client: openai.OpenAI, server: Running) -> None:
    first = client.responses.create(input="Tell me a story about a fox.", max_output_tokens=40, **GREEDY)
    assert first.output_text
    assert first.status == "incomplete"
    assert first.incomplete_details is not None
    assert first.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(input="Go on.", previous_response_id=first.id, max_output_tokens=8, **GREEDY)
    assert second.usage is not None
    whole = client.responses.create(
        input=[
            {"role": "user", "content": "Tell me a story about a fox."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "Go on."},
        ],
        max_output_tokens=8, store=False, **GREEDY,
    )  # fmt: skip
    assert second.output_text == whole.output_text
    assert second.usage.input_tokens_details.cached_tokens > 16
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(whole.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="no response"):
        client.responses.create(input="x", previous_response_id=first.id, **GREEDY)


def test_input_items_of_a_response(client: openai.OpenAI) -> None:
    first = client.responses.create(input="Tell me a story.", max_output_tokens=4, **GREEDY)
    (item,) = client.responses.input_items.list(first.id)
    assert (item.role, item.content[0].text) == ("user", "Tell me a story.")
    texts = ["one", "two", "three"]
    second = client.responses.create(
        input=[{"role": "user", "content": text} for text in texts], previous_response_id=first.id,
        max_output_tokens=4, **GREEDY,
    )  # fmt: skip
    listed = client.responses.input_items.list(second.id, limit=1, order="asc")  # the client asks for page after page
    assert [item.content[0].text for item in listed] == texts
    newest = client.responses.input_items.list(second.id)
    assert [item.content[0].text for item in newest] == texts[::-1]
    with pytest.raises(openai.BadRequestError, match="after"):
        client.responses.input_items.list(second.id, after="msg_none")
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_none")


def test_a_previous_response_is_pinned_until_it_goes(client: openai.OpenAI, server: Running) -> None:
    before = len(server.service.pins)
    first = client.responses.create(input="Tell me about the sea. " * 8, max_output_tokens=8, **GREEDY)
    assert len(server.service.pins) == before + 1
    server.call(server.service.llm._thread.call(server.service.llm._built.engine.manager.clear_prefix))
    second = client.responses.create(input="Go on.", previous_response_id=first.id, max_output_tokens=4, **GREEDY)
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= 32
    assert len(server.service.pins) == before + 1  # the second one's stands for both
    client.responses.delete(second.id)
    for _ in range(50):
        if len(server.service.pins) == before:
            break
        server.http.get("/health")
    assert len(server.service.pins) == before


def test_a_response_streams_its_events_in_order(client: openai.OpenAI) -> None:
    whole = client.responses.create(input="Hello", max_output_tokens=8, **GREEDY)
    events = list(client.responses.create(input="Hello", max_output_tokens=8, stream=True, **GREEDY))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    with client.responses.stream(input="Hello", extra_body={"stop": ["."]}, **GREEDY) as stream:
        assert stream.get_final_response().output_text.startswith(whole.output_text.split(".")[0])


def test_errors_are_the_clients_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=MESSAGES, extra_body={"no_such_field": 1}, **GREEDY)
    assert (refused.value.param, refused.value.code) == ("no_such_field", "unknown_field")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(prompt="word " * 4000, **GREEDY)
    assert long.value.code == "context_length_exceeded"


def test_extensions_through_extra_body(client: openai.OpenAI, server: Running) -> None:
    before = len(server.service.pins)
    extra = {"cache_control": {"pin": True, "ttl": 60}, "cache_salt": "mine", "priority": 0, "kv": "exact"}
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=30, extra_body=extra, **GREEDY)
    assert answer.metrics["kv_bytes_held"] > 0  # type: ignore[attr-defined]
    assert len(server.service.pins) == before + 1
    extra["kv"] = "recent(budget=0.5)"
    with pytest.raises(openai.BadRequestError, match="cache_control"):
        client.chat.completions.create(messages=MESSAGES, max_tokens=4, extra_body=extra, **GREEDY)
