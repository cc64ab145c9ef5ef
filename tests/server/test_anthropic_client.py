"""The official Anthropic client against ``/v1/messages``."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from .conftest import Running

ASK = {
    "model": "lantern",
    "max_tokens": 12,
    "extra_body": {"temperature": 0},
}  # this client has no temperature of its own
HELLO = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="not-needed", max_retries=0) as client:
        yield client


def test_a_message_is_the_chat_answer(client: anthropic.Anthropic, server: Running) -> None:
    message = client.messages.create(messages=HELLO, **ASK)
    chat = server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 12, "temperature": 0}).json()
    assert message.content[0].text == chat["choices"][0]["message"]["content"]
    assert (message.stop_reason, message.role) == ("max_tokens", "assistant")
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]


def test_system_blocks_and_stop_sequences(client: anthropic.Anthropic) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Tell me a story about a fox."}]}]
    plain = client.messages.create(messages=blocks, system="Be kind.", **ASK)
    listed = client.messages.create(messages=blocks, system=[{"type": "text", "text": "Be kind."}], **ASK)
    text = plain.content[0].text
    assert listed.content[0].text == text
    word = text.split()[3]
    stopped = client.messages.create(messages=blocks, system="Be kind.", stop_sequences=[word], **ASK)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert stopped.content[0].text == text[: text.index(word)]


def test_a_stream(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(messages=HELLO, **ASK)
    with client.messages.stream(messages=HELLO, **ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 12
    kinds = [event.type for event in client.messages.create(messages=HELLO, stream=True, **ASK)]
    assert kinds[0] == "message_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "content_block_delta" in kinds


def test_cache_marks_pin_the_prompt(client: anthropic.Anthropic, server: Running) -> None:
    before = len(server.service.pins)
    text = {"type": "text", "text": "A long tale of the sea. " * 10, "cache_control": {"type": "ephemeral"}}
    first = client.messages.create(messages=[{"role": "user", "content": [text]}], **ASK)
    assert first.usage.cache_creation_input_tokens > 16
    assert len(server.service.pins) == before + 1
    second = client.messages.create(messages=[{"role": "user", "content": [text]}], **ASK)
    assert second.usage.cache_read_input_tokens > 16
    client.messages.create(messages=HELLO, cache_control={"type": "ephemeral", "ttl": "1h"}, **ASK)
    assert len(server.service.pins) > before + 1


def test_counting(client: anthropic.Anthropic, server: Running) -> None:
    count = client.messages.count_tokens(model="lantern", messages=HELLO)
    assert count.input_tokens == server.post("/tokenize", {"messages": HELLO}).json()["count"]


def test_errors_in_anthropics_form(client: anthropic.Anthropic, server: Running) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**ASK | {"model": "other"}, messages=HELLO)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(messages=[{"role": "user", "content": [image]}], **ASK)
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        client.messages.create(messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}, **ASK)
    body = server.post("/v1/messages", {"max_tokens": 1}).json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert "messages is missing" in body["error"]["message"]
