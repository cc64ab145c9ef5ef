"""Who may ask, and how much: keys, limits of each, other people's prefixes, pages of other origins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.core.errors import ConfigError
from pagoda.schedule.item import Item
from pagoda.schedule.scheduler import Scheduler
from pagoda.server.config import ServerConfig
from pagoda.server.keys import Keys, read_keys

from .conftest import Running
from .misbehaving import LONG, SHORT, raw_stream, until


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


def test_a_key_file_without_a_key_does_not_open_the_server(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    for text in ("", "\n", "  # a comment\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="holds no key"):
            read_keys((), str(file), {})


@pytest.mark.parametrize("wrong", [{"names": ("",)}, {"cors_origins": ("example.org",)}])
def test_names_and_origins_that_nobody_could_send_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give"):
        ServerConfig(**wrong)


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
