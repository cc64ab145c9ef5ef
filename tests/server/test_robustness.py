"""What must hold when clients, disks and engines misbehave: nothing hangs, nothing leaks, every error says why."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from pagoda.core.errors import PagodaError
from pagoda.core.types import KVFormat
from pagoda.engine.async_llm import AsyncLLM
from pagoda.server.jobs import RequestEnded
from pagoda.server.streams import EventStream

from ..engine.tiny import make_model
from .conftest import OPTIONS, Running, running
from .misbehaving import LONG, SHORT, all_is_freed, idle, raw_stream, until

# -- clients that leave ------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_frees_its_pages_within_a_step(server: Running) -> None:
    sock = raw_stream(server, LONG)
    until(lambda: server.stats()["kv"]["num_sequences"] == 1)
    steps = server.stats()["steps"]["steps"]
    sock.close()
    until(lambda: server.stats()["kv"]["num_sequences"] == 0)
    assert server.stats()["steps"]["steps"] - steps < 100, "the answer would have taken 1500 steps"
    all_is_freed(server)


def test_leaving_is_heard_before_the_next_step(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment the connection's end is seen, at most the step under way runs with the pages held."""
    llm = server.service.llm
    engine, seen = llm._built.engine, {}
    give_up, abort = EventStream._give_up, type(engine).abort

    def noting_leave(stream: EventStream) -> None:
        seen.setdefault("left", engine.counters.steps)
        give_up(stream)

    def noting_abort(self: Any, request_id: str) -> Any:
        seen.setdefault("freed", engine.counters.steps)
        return abort(self, request_id)

    monkeypatch.setattr(EventStream, "_give_up", noting_leave)
    monkeypatch.setattr(type(engine), "abort", noting_abort)
    sock = raw_stream(server, LONG)
    sock.close()
    until(lambda: "freed" in seen)
    assert seen["freed"] - seen["left"] <= 1
    all_is_freed(server)


def test_a_client_that_leaves_before_an_unstreamed_answer(server: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.post("/v1/completions", LONG | {"stream": False}, timeout=httpx.Timeout(60, read=0.3))
    all_is_freed(server)


def test_kill_9_of_a_client_in_mid_stream(server: Running) -> None:
    code = "import httpx, sys\nwith httpx.stream('POST', sys.argv[1], json=eval(sys.argv[2])) as r:\n"
    code += " for line in r.iter_lines():\n  print(line, flush=True)"
    client = subprocess.Popen(
        [sys.executable, "-c", code, f"{server.url}/v1/completions", repr(LONG)], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    assert client.stdout.readline().startswith(b"data:")
    client.kill()
    client.wait(10)
    client.stdout.close()
    all_is_freed(server)


def test_a_slow_reader_holds_up_nobody_and_is_let_go(serve: Callable[..., Running]) -> None:
    server = serve(send_timeout=0.6)
    ended: list[RequestEnded] = []
    server.service.events.subscribe(RequestEnded, ended.append)
    sock = raw_stream(server, LONG | {"logprobs": 10, "n": 4})  # some MB of events: more than the sockets hold
    started = time.monotonic()
    assert server.post("/v1/completions", SHORT).status_code == 200
    assert time.monotonic() - started < 20
    until(lambda: not server.service.streams, 60)
    all_is_freed(server)
    assert 499 in [event.status for event in ended]
    sock.close()


def test_a_slow_reader_cannot_grow_memory(serve: Callable[..., Running]) -> None:
    """What waits for it is one joined letter and about one socket buffer, however much it has not taken."""
    server = serve(send_timeout=300)
    with raw_stream(server, LONG | {"logprobs": 10, "n": 4}):  # 5 MB of events
        until(lambda: any(stream._sending_since is not None for stream in server.service.streams), 120)
        (job,) = server.service.jobs
        assert job._answers is not None
        until(lambda: idle(server), 120)  # the engine was not held up: the whole answer is there
        assert server.service.streams
        assert len(job._answers._mailbox._letters) == 1
        waiting = [connection.transport.get_write_buffer_size() for connection in server.connections]
        assert 0 < max(waiting) < 1 << 18
    all_is_freed(server)


# -- sizes and times ---------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_before_it_is_read(serve: Callable[..., Running]) -> None:
    server = serve(max_body_bytes=1000)
    done = server.post("/v1/completions", {"prompt": "x" * 2000})
    assert (done.status_code, done.json()["error"]["code"]) == (413, "body_too_large")

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 100

    with suppress(httpx.WriteError):  # the server may close while we still write
        assert server.http.post("/v1/completions", content=parts()).status_code == 413
    assert server.post("/v1/completions", SHORT).status_code == 200


def test_a_slow_upload_is_ended(serve: Callable[..., Running]) -> None:
    server = serve(upload_timeout=0.2)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in sock.recv(300)


def test_an_answer_that_takes_too_long(serve: Callable[..., Running]) -> None:
    server = serve(request_timeout=0.3)
    done = server.post("/v1/completions", LONG | {"stream": False})
    assert (done.status_code, done.json()["error"]["code"]) == (504, "timeout")
    with server.http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
    assert lines[-1] == "data: [DONE]"
    all_is_freed(server)


# -- what strangers send -----------------------------------------------------------------------------------------------


def test_nothing_is_pickled() -> None:
    """No file of the package reads or writes pickles; what crosses processes or disks is JSON, msgspec or tensors."""
    import ast
    from pathlib import Path

    import pagoda

    for file in Path(pagoda.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & set(names), file


def test_a_template_from_a_stranger_runs_in_a_sandbox(server: Running) -> None:
    from pagoda.models.chat import ChatTemplate

    for text in ("{{ messages.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(PagodaError):
            ChatTemplate({"default": text}, {}).render([{"role": "user", "content": "hi"}])
    hostile = {"messages": [{"role": "user", "content": "{{ 7 * 191 }}"}], "max_tokens": 1}
    prompt = server.post("/tokenize", {"messages": hostile["messages"]}).json()["tokens"]
    assert "{{ 7 * 191 }}" in server.post("/detokenize", {"tokens": prompt}).json()["prompt"]


# -- what turns out not to fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_what_fits_no_room_beside_what_its_method_remembers_is_the_requests_fault(tmp_path: Path, stream: bool) -> None:
    """It is found out in a step, but a client that takes it for a fault of the server would ask again and again."""
    blocks = 13 * KVFormat(2, 2, 8, 8, 8, "float32").block_bytes
    llm = AsyncLLM(str(make_model(tmp_path)), **OPTIONS | {"kv_memory": blocks}, page_size=8, max_model_len=104)
    body = {"prompt": [3 + at % 90 for at in range(97)], "max_tokens": 6, "ignore_eos": True, "stream": stream}
    with running(llm) as server:
        done = server.post("/v1/completions", body | {"kv": "h2o(budget=400)"})
        events = [line[6:] for line in done.text.split("\n") if line.startswith("data: {")]
        told = json.loads(events[-1] if stream else done.text)["error"]
        assert (told["type"], told["code"]) == ("invalid_request_error", "context_length_exceeded")
        assert "what kv='h2o' remembers" in told["message"]
        assert server.post("/v1/completions", body).status_code == 200
    asyncio.run(llm.close())
