"""A server gives its memory back when told, or when nobody asks for a while, and answers the next request as ever."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pagoda.core.errors import AsleepError, ConfigError
from pagoda.server.config import ServerConfig
from pagoda.server.errors import translated
from pagoda.server.keys import Keys

from .conftest import Running

ASK = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}


def text_of(server: Running) -> str:
    answer = server.post("/v1/completions", ASK)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_by_command(server: Running) -> None:
    pinned = ASK | {"cache_control": {"pin": True}, "prompt": "Once upon a time " * 12}
    before = text_of(server)
    assert server.post("/v1/completions", pinned).status_code == 200
    assert len(server.service.pins) > 0
    done = server.post("/admin/sleep").json()
    assert done["asleep"]
    assert done["freed_bytes"] > 8 << 20
    assert len(server.service.pins) == 0
    assert "pagoda_asleep{model_name=" in server.http.get("/metrics").text
    assert server.http.get("/api/state").json()["asleep"]
    for path in ("/health", "/ready", "/v1/models", "/admin/stats"):
        assert server.http.get(path).status_code == 200, path
    assert server.post("/tokenize", {"prompt": "Once"}).json()["count"] > 0
    assert server.stats()["asleep"]  # looking at it has not woken it
    assert text_of(server) == before
    assert not server.stats()["asleep"]
    server.post("/admin/sleep")
    assert server.post("/admin/wake").json() == {"asleep": False}
    assert server.post("/admin/audit").json() == {"balanced": True}


def test_not_while_somebody_is_answered(server: Running) -> None:
    body = ASK | {"stream": True, "max_tokens": 1500, "ignore_eos": True}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: a generator that is dropped closes the stream
        next(lines)
        refused = server.post("/admin/sleep")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "busy")


def test_when_nobody_asks(serve: Callable[..., Running]) -> None:
    server = serve(sleep_after=0.3)
    before = text_of(server)
    end = time.monotonic() + 60
    while not server.stats()["asleep"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert text_of(server) == before


def test_only_the_admin(serve: Callable[..., Running]) -> None:
    server = serve(Keys({"ann": "key-of-ann"}, "key-of-admin"))
    for path in ("/admin/sleep", "/admin/wake"):
        assert server.post(path, headers={"Authorization": "Bearer key-of-ann"}).status_code == 403


def test_what_cannot_wake_is_the_servers_fault() -> None:
    error = translated(AsleepError("the engine sleeps and cannot wake: no such file"))
    assert (error.status, error.code) == (503, "cannot_wake")


def test_a_wrong_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="sleep_after is -1"):
        ServerConfig(sleep_after=-1)
