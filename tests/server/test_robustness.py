"""What must hold when clients, disks and engines misbehave: nothing hangs, nothing leaks, every error says why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from pagoda.core.errors import ConfigError, PagodaError
from pagoda.schedule.item import Item
from pagoda.schedule.scheduler import Scheduler
from pagoda.server.jobs import RequestEnded
from pagoda.server.keys import Keys, read_keys
from pagoda.server.streams import EventStream

from .conftest import Running

LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True}
SHORT = LONG | {"max_tokens": 4, "stream": False}


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits; fails when it does not come true in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def idle(server: Running) -> bool:
    stats = server.stats()
    return stats["queue"]["running"] == stats["queue"]["waiting"] == stats["kv"]["num_sequences"] == 0


def all_is_freed(server: Running) -> None:
    until(lambda: idle(server))
    server.call(server.service.llm.audit())
    assert not server.service.jobs
    assert not server.service.streams
    assert server.service.gate.inside == 0


def raw_stream(server: Running, body: dict[str, Any]) -> socket.socket:
    """A streaming request over a plain socket, its first bytes read."""
    data = json.dumps(body).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    assert b"200 OK" in sock.recv(200)
    return sock


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
        server.post("/v1/completions", LONG | {"stream": False}, timeout=0.3)
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


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back(serve: Callable[..., Running]) -> None:
    server = serve(max_waiting=0)
    socks = [raw_stream(server, LONG) for _ in range(16)]
    done = server.post("/v1/completions", SHORT)
    assert (done.status_code, done.json()["error"]["code"]) == (429, "queue_full")
    assert int(done.headers["retry-after"]) >= 1
    for sock in socks:
        sock.close()
    until(lambda: server.service.gate.inside == 0)
    assert server.post("/v1/completions", SHORT).status_code == 200
    assert server.post("/v1/completions", SHORT | {"prompt": ["a"] * 17}).status_code == 400


KEYS = Keys({"ann": "key-of-ann", "bob": "key-of-bob"}, "key-of-admin")


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{name}"}


def test_each_key_has_its_own_limits(serve: Callable[..., Running]) -> None:
    server = serve(KEYS, max_concurrent_per_key=1)
    with server.http.stream("POST", "/v1/completions", json=LONG, headers=as_("ann")) as answer:
        lines = answer.iter_lines()  # kept: a generator that is dropped closes the stream
        next(lines)
        done = server.post("/v1/completions", SHORT, headers=as_("ann"))
        assert (done.status_code, done.json()["error"]["code"]) == (429, "concurrency_limit")
        assert server.post("/v1/completions", SHORT, headers=as_("bob")).status_code == 200
    until(lambda: server.service.gate.inside == 0)
    assert server.post("/v1/completions", SHORT, headers=as_("ann")).status_code == 200


def test_tokens_per_minute(serve: Callable[..., Running]) -> None:
    server = serve(KEYS, tokens_per_minute_per_key=12)
    codes = [server.post("/v1/completions", SHORT, headers=as_("ann")).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    assert server.post("/v1/completions", SHORT, headers=as_("bob")).status_code == 200
    refused = server.post("/v1/completions", SHORT, headers=as_("ann"))
    assert refused.json()["error"]["code"] == "token_limit"
    assert int(refused.headers["retry-after"]) > 5


def test_kv_bytes_of_a_key(serve: Callable[..., Running], lantern: Any) -> None:
    block = lantern.kv_format.block_bytes
    server = serve(KEYS, kv_bytes_per_key=100 * block)
    with server.http.stream("POST", "/v1/completions", json=LONG, headers=as_("ann")) as answer:
        lines = answer.iter_lines()  # kept: a generator that is dropped closes the stream
        next(lines)
        done = server.post("/v1/completions", LONG | {"max_tokens": 200}, headers=as_("ann"))
        assert (done.status_code, done.json()["error"]["code"]) == (429, "kv_limit")
    done = server.post("/v1/completions", LONG | {"n": 2}, headers=as_("bob"))
    assert (done.status_code, done.json()["error"]["code"]) == (400, "kv_limit")
    for kv in ("int8", "streaming_llm(budget=64)"):  # counted as it is kept
        done = server.post("/v1/completions", LONG | {"n": 2, "kv": kv, "stream": False}, headers=as_("bob"))
        assert done.status_code == 200, done.text


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_open_doors_and_nothing_else_does(serve: Callable[..., Running]) -> None:
    server = serve(KEYS)
    assert server.http.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "key-of-ann"}, {"x-api-key": "nope"}):
        done = server.http.get("/v1/models", headers=headers)
        assert (done.status_code, done.json()["error"]["code"]) == (401, "invalid_api_key")
    for headers in (as_("ann"), {"x-api-key": "key-of-bob"}):
        assert server.http.get("/v1/models", headers=headers).status_code == 200
        assert server.http.get("/admin/stats", headers=headers).status_code == 403
    assert server.http.get("/admin/stats", headers=as_("admin")).json()["kv"]["num_sequences"] == 0
    assert server.http.post("/admin/audit", headers=as_("admin")).json() == {"balanced": True}


def test_the_caller_is_the_tenant_that_fair_policies_see(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants, add = [], Scheduler.add

    def noted(self: Scheduler, item: Item) -> None:
        tenants.append(item.tenant)
        add(self, item)

    monkeypatch.setattr(Scheduler, "add", noted)
    server = serve(KEYS)
    for name in ("ann", "bob"):
        assert server.post("/v1/completions", SHORT, headers=as_(name)).status_code == 200
    assert tenants == ["ann", "bob"]


def test_keys_do_not_find_each_others_prefixes_or_responses(serve: Callable[..., Running]) -> None:
    server = serve(KEYS)
    ask = SHORT | {"prompt": "The keeper of the lighthouse had a secret that nobody knew, " * 3}

    def cached(name: str) -> int:
        usage = server.post("/v1/completions", ask, headers=as_(name)).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert [cached("ann"), cached("bob")] == [0, 0]
    assert cached("ann") > 0
    body = {"input": "hi", "max_output_tokens": 2}
    first = server.post("/v1/responses", body, headers=as_("ann")).json()["id"]
    assert server.http.get(f"/v1/responses/{first}", headers=as_("ann")).status_code == 200
    assert server.http.get(f"/v1/responses/{first}", headers=as_("bob")).status_code == 404
    assert server.post("/v1/responses", body | {"previous_response_id": first}, headers=as_("bob")).status_code == 400


def test_reading_keys(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nann:secret-of-ann\nadmin:secret-of-admin\nplain-secret\n")
    keys = read_keys(["given-secret"], str(file), {"PAGODA_API_KEY": "secret-in-env"})
    names = {}
    for key in ("secret-of-ann", "secret-of-admin", "plain-secret", "given-secret", "secret-in-env", "other"):
        caller = keys.caller({"authorization": f"bearer {key}"})
        names[key] = caller and (caller.name, caller.is_admin)
    assert names["secret-of-ann"] == ("ann", False)
    assert names["secret-of-admin"] == ("admin", True)
    assert names["other"] is None
    assert names["plain-secret"]
    assert names["given-secret"]
    assert names["secret-in-env"]
    for bad, message in (("a:short\n", "has 5 characters"), ("a:same-secret\nb:same-secret\n", "are equal")):
        file.write_text(bad)
        with pytest.raises(ConfigError, match=message) as error:
            read_keys([], str(file), {})
        assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys([], str(tmp_path / "none"), {})


def test_cors_is_off_unless_an_origin_is_named(serve: Callable[..., Running], server: Running) -> None:
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.http.get("/health", headers=ask).headers
    open_ = serve(cors_origins=("https://page.example",))
    assert open_.http.options("/v1/models", headers=ask).headers["access-control-allow-origin"] == ask["Origin"]
    other = ask | {"Origin": "https://other.example"}
    assert "access-control-allow-origin" not in open_.http.get("/health", headers=other).headers


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known key is looked at, by a comparison that does not stop early, whichever it is and whether it is any."""
    from pagoda.server import keys as module

    compared: list[int] = []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return real(one, other)

    real = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", counting)
    for key in ("key-of-ann", "key-of-bob", "key-of-admin", "nobody's", ""):
        compared.clear()
        KEYS.caller({"authorization": f"Bearer {key}", "x-api-key": key})
        assert compared == [32, 32, 32], key


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


# -- the process -------------------------------------------------------------------------------------------------------


@contextmanager
def process(*args: str, stderr: Any = subprocess.PIPE, stdout: Any = subprocess.PIPE, env: Any = None, port: int = 0):
    """``pagoda serve lantern`` as people start it; yields (process, url)."""
    code = "import sys; from pagoda.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "lantern", "--memory", "1GiB", "--threads", "1", "--json"]
    child = subprocess.Popen(
        [*command, "--port", str(port), *args], stdout=stdout, stderr=stderr, env={**os.environ, **(env or {})}
    )
    try:
        if stdout is subprocess.PIPE:
            assert child.stdout is not None
            ready = json.loads(child.stdout.readline())
            assert ready["ready_seconds"] > 0
            assert {"python", "import", "weights", "listening"} <= ready["startup_seconds"].keys()
            yield child, ready["url"]
        else:
            url = f"http://127.0.0.1:{port}"
            until(lambda: _answers(url), 60)
            yield child, url
    finally:
        child.kill()
        child.wait(10)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


async def _sigterm_under_load(child: subprocess.Popen[bytes], url: str) -> list[Any]:
    """16 streams; SIGTERM once all have begun. What each of them saw."""
    begun = 0

    async def one(client: httpx.AsyncClient, number: int) -> Any:
        nonlocal begun
        lines = []
        body = LONG | {"max_tokens": 12 if number % 2 else 1900}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                begun += not lines
                lines += [line] if line else []
        return lines

    async with httpx.AsyncClient(timeout=60) as client:
        tasks = [asyncio.create_task(one(client, number)) for number in range(16)]
        while begun < 16:
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        late = await client.post(f"{url}/v1/completions", json=SHORT)
        ready = await client.get(f"{url}/ready")
        return [late, ready, *await asyncio.gather(*tasks)]


def test_sigterm_under_load_finishes_or_says_why() -> None:
    with process("--drain-timeout", "3") as (child, url):
        late, ready, *streams = asyncio.run(_sigterm_under_load(child, url))
        assert child.wait(20) == 0
    assert late.status_code == ready.status_code == 503
    assert late.json()["error"]["code"] == "draining"
    assert "retry-after" in late.headers
    finished = 0
    for lines in streams:
        assert lines[-1] == "data: [DONE]"
        last = json.loads(lines[-2].removeprefix("data: "))
        if "error" in last:
            assert last["error"]["code"] == "shutting_down"
        else:
            finished += last["choices"][0]["finish_reason"] == "length"
    assert finished >= 8, "the short answers had the time"


def test_a_second_signal_ends_at_once() -> None:
    with process() as (child, url), httpx.stream("POST", f"{url}/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()  # kept: a generator that is dropped closes the stream
        next(lines)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 128 + signal.SIGTERM


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # what a stream could not write it tries again at the end, or not
def test_a_full_disk_under_the_log_costs_no_answer(unbuffered: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full, process(stderr=full, stdout=full, port=port, env=environment) as (child, url):
        for _ in range(3):
            assert httpx.post(f"{url}/v1/completions", json=SHORT, timeout=30).status_code == 200
            assert httpx.post(f"{url}/v1/completions", json={"nope": 1}).status_code == 400
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0


CRASH = """
import sys, threading, time
from pagoda.engine import engine
step, count = engine.Engine.step, [0]
def dying(self):
    count[0] += 1
    if count[0] > 20:
        raise MemoryError("the scheduler lost its mind")
    return step(self)
engine.Engine.step = dying
from pagoda.cli.main import main
main(["serve", "lantern", "--memory", "1GiB", "--threads", "1", "--json", "--port", "0"])
"""


def test_the_engines_death_is_told_to_everybody_and_ends_the_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", CRASH], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    url = json.loads(child.stdout.readline())["url"]
    with httpx.Client(timeout=20) as client, client.stream("POST", f"{url}/v1/completions", json=LONG) as answer:
        lines = [line for line in answer.iter_lines() if line]
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["code"] == "engine_closed"
    assert "lost its mind" in error["message"]
    assert child.wait(20) == 1
    child.stdout.close()
