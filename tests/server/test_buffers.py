"""What the server holds beside the engine is counted, bounded, and given back."""

from __future__ import annotations

import gc
import json
import socket
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from pagoda.sampling.logprobs import TokenLogprob
from pagoda.server.buffers import CONNECTION_BYTES, LOGPROB_BYTES, bytes_of_body
from pagoda.server.config import MIB
from pagoda.server.logprobs import chat_logprobs
from pagoda.server.schemas.chat import ChatRequest
from pagoda.server.schemas.completions import CompletionRequest

from .conftest import Running
from .misbehaving import LONG, raw_stream, until

SHORT = {"role": "user", "content": "hi"}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {f"a{i}": {"type": "integer"} for i in range(3000)}},
    },
}
BODIES = {
    "token ids": (CompletionRequest, {"prompt": list(range(300, 2000)) * 10}),
    "lists of one id": (CompletionRequest, {"prompt": [[1]] * 20_000}),
    "texts": (CompletionRequest, {"prompt": ["a fox"] * 10_000}),
    "wide characters": (CompletionRequest, {"prompt": "a\U0001f98a" * 100_000}),
    "messages": (ChatRequest, {"messages": [SHORT] * 5000}),
    "calls": (ChatRequest, {"messages": [{"role": "assistant", "content": "hi", "tool_calls": [CALL]}] * 2000}),
    "a schema": (ChatRequest, {"messages": [SHORT], "tools": [TOOL]}),
    "JSON in a text": (ChatRequest, {"messages": [{"role": "user", "content": json.dumps(TOOL) * 40}]}),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_takes_no_more_than_it_is_counted_with(kind: str) -> None:
    model, data = BODIES[kind]
    body = json.dumps(data, ensure_ascii=False).encode()
    gc.collect()
    tracemalloc.start()
    try:
        held = bytes(bytearray(body)), json.loads(body)
        checked = model.model_validate(held[1])
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert checked
    assert taken <= bytes_of_body(body)
    assert bytes_of_body(body) < 12 * taken + 1000, "so much more would refuse what fits"


def test_a_logprob_takes_no_more_than_it_is_counted_with(server: Running) -> None:
    tokenizer = server.service.llm.tokenizer
    chat_logprobs(tokenizer, [TokenLogprob(5, -1.0, 1, [(7, -2.0)])], 1)
    tracemalloc.start()
    try:
        reports = [TokenLogprob(5 + n, -1.0 - n, 1, [(1000 + n + i, -2.0 - i) for i in range(20)]) for n in range(200)]
        told = chat_logprobs(tokenizer, reports, 20)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(told) == 200
    assert taken <= 200 * 21 * LOGPROB_BYTES


def test_the_ledger_knows(server: Running) -> None:
    assert server.http.get("/health").status_code == 200  # a connection that stays
    account = server.stats()["memory"]["accounts"]["server"]
    assert account["leased_bytes"] >= server.service.buffers.capacity
    assert account["resident_bytes"] >= CONNECTION_BYTES


def test_bodies_come_out_of_one_pool_and_go_back(serve: Callable[..., Running]) -> None:
    server = serve(memory_bytes=2 * MIB)
    ids = {"prompt": [5] * 20_000}
    done = server.post("/v1/completions", ids)
    assert (done.status_code, done.json()["error"]["code"]) == (413, "body_too_large")
    assert "--server-memory" in done.json()["error"]["message"]
    held = {"prompt": [5] * 1800, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with ExitStack() as stack:
        socks = [stack.enter_context(raw_stream(server, held)) for _ in range(5)]
        done = server.post("/v1/completions", held)
        assert (done.status_code, done.json()["error"]["code"]) == (429, "buffers_full"), server.service.buffers.held
        assert int(done.headers["retry-after"]) >= 1
        assert len(socks) == 5
    until(lambda: server.service.buffers.held == server.service.buffers.num_connections * CONNECTION_BYTES)
    assert server.post("/v1/completions", held | {"max_tokens": 1, "stream": False}).status_code == 200


def test_logprobs_that_could_not_be_held_are_refused(serve: Callable[..., Running]) -> None:
    server = serve(memory_bytes=4 * MIB)
    done = server.post("/v1/completions", LONG | {"logprobs": 20, "n": 4})
    assert (done.status_code, done.json()["error"]["param"]) == (400, "logprobs")
    assert server.post("/v1/completions", LONG | {"logprobs": 5, "max_tokens": 9, "stream": False}).status_code == 200
    until(lambda: server.service.buffers.held == server.service.buffers.num_connections * CONNECTION_BYTES)


def test_connections_are_bounded(serve: Callable[..., Running]) -> None:
    server = serve(memory_bytes=MIB)
    most = MIB // 2 // CONNECTION_BYTES
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(socket.create_connection(address))
        until(lambda: server.service.buffers.num_connections == most)
        late = stack.enter_context(socket.create_connection(address))
        answer = late.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "connections"
    until(lambda: server.service.buffers.num_connections == 0)
    assert server.service.buffers.held == 0
    assert server.http.get("/health").status_code == 200


def test_stored_responses_are_bounded_in_bytes(serve: Callable[..., Running]) -> None:
    server = serve(memory_bytes=MIB)
    body = {"input": "Tell me a long story about the sea. " * 30, "max_output_tokens": 2}
    made = [server.post("/v1/responses", body).json()["id"] for _ in range(30)]
    store = server.service.responses
    assert 0 < len(store) < 30
    assert store.num_bytes <= MIB // 4
    assert server.http.get(f"/v1/responses/{made[0]}").status_code == 404
    assert server.http.get(f"/v1/responses/{made[-1]}").status_code == 200
    for response_id in made[-len(store) :]:
        assert server.http.delete(f"/v1/responses/{response_id}").status_code == 200
    assert store.num_bytes == 0
    until(lambda: server.service.buffers.held == server.service.buffers.num_connections * CONNECTION_BYTES)


def test_a_text_far_too_long_is_not_tokenized_whole(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = server.service.llm.tokenizer, []
    encode_many = type(tokenizer).encode_many

    def spying(self, texts, add_special_tokens=True):
        seen.extend(map(len, texts))
        return encode_many(self, texts, add_special_tokens)

    monkeypatch.setattr(type(tokenizer), "encode_many", spying)
    done = server.post("/v1/completions", {"prompt": "word " * 400_000})
    assert (done.status_code, done.json()["error"]["code"]) == (400, "context_length_exceeded")
    chat = {"messages": [{"role": "user", "content": "word " * 400_000}]}
    assert server.post("/v1/chat/completions", chat).json()["error"]["code"] == "context_length_exceeded"
    assert max(seen) <= 16 * server.service.llm.max_model_len
