"""Models, health, version, tokenizer, errors of the framework in our shape."""

from __future__ import annotations

import pytest

from pagoda.budget import MachineProbe

from .conftest import Running


def test_open_doors(server: Running) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json() == {"status": "ready"}
    assert set(server.http.get("/version").json()) == {"version"}


def test_models(server: Running) -> None:
    listed = server.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["lantern"]
    assert server.http.get("/v1/models/lantern").json() == listed[0]
    for name in ("other", "..%2F..%2Fetc%2Fpasswd", "a/b"):
        done = server.http.get(f"/v1/models/{name}")
        assert (done.status_code, done.json()["error"]["code"]) == (404, "model_not_found")


def test_tokenize_there_and_back(server: Running) -> None:
    answer = server.post("/tokenize", {"prompt": "Once upon a time", "return_token_strs": True}).json()
    assert answer["tokens"] == server.service.llm.tokenizer.encode("Once upon a time")
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert server.post("/detokenize", {"tokens": answer["tokens"][1:]}).json() == {"prompt": "Once upon a time"}
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    rendered = server.service.llm.chat_template.render([{"role": "user", "content": "hi"}])
    assert server.post("/detokenize", {"tokens": chat["tokens"]}).json() == {"prompt": rendered}


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, {"x": 1}])
def test_tokenize_refuses(server: Running, body: dict) -> None:
    assert server.post("/tokenize", body).status_code == 400
    assert server.post("/detokenize", {"tokens": [10**6]}).status_code == 400


def test_errors_of_every_kind_have_one_shape(server: Running) -> None:
    http = server.http
    answers = [
        (404, http.get("/nope")),
        (405, http.get("/v1/completions")),
        (400, http.post("/v1/completions", content=b"{")),
        (400, http.post("/v1/completions", content=b"[" * 100_000, headers={"content-type": "application/json"})),
        (400, http.post("/v1/completions", content=b"\xff\xfe", headers={"content-type": "application/json"})),
        (
            400,
            http.post(
                "/v1/completions", content=b'{"prompt": "\\ud800"}', headers={"content-type": "application/json"}
            ),
        ),
        (400, http.post("/v1/completions", content=b'{"\\ud800": 1}', headers={"content-type": "application/json"})),
        (400, http.post("/v1/completions", content=b"a=b", headers={"content-type": "text/plain"})),
        (400, http.post("/v1/completions", json=[])),
        (
            400,
            http.post(
                "/v1/completions",
                content=b'{"prompt": "a", "temperature": NaN}',
                headers={"content-type": "application/json"},
            ),
        ),
    ]
    for status, answer in answers:
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answers[1][1].headers["allow"] == "POST"


def test_request_ids_come_back(server: Running) -> None:
    assert server.http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert server.http.get("/health", headers={"x-request-id": "bad id!"}).headers["x-request-id"].startswith("req-")


def test_the_budget_changes_while_the_server_runs(server: Running) -> None:
    before = server.stats()["memory"]["total_bytes"]
    done = server.post("/admin/budget", {"memory": "2900MiB"})
    assert (done.status_code, done.json()["total_bytes"]) == (200, 2900 << 20)
    refused = server.post("/admin/budget", {"memory": "64MiB"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "budget_too_small")
    assert "the nearest budget that can is" in refused.json()["error"]["message"]
    assert server.post("/admin/budget", {"memory": "lots"}).status_code == 400
    assert server.post("/admin/budget", {"memory": before}).json()["total_bytes"] == before


def test_budgets_over_http_say_what_python_does(server: Running) -> None:
    before = server.stats()["memory"]["total_bytes"]
    machine = MachineProbe().limit()[0]
    try:
        for half in (0.5, "0.5", "50%"):
            assert server.post("/admin/budget", {"memory": half}).json()["total_bytes"] == machine // 2
        assert server.post("/admin/budget", {"host_memory": "2GiB"}).json()["total_bytes"] == 2 << 30
        for body, says in (
            ({"memory": True}, "memory: give bytes (2147483648, '2GiB'), or a share of the machine (0.5, '50%')"),
            ({"memory": [1]}, "memory: give bytes (2147483648, '2GiB'), or a share of the machine (0.5, '50%')"),
            ({"memory": 1.5}, "memory 1.5 is not a share between 0 and 1"),
            ({"disk": "1GiB"}, "no kv_dir says where"),
            ({"device_memory": "1GiB"}, "this engine runs on the CPU"),
            ({}, "no budget is named"),
        ):
            answer = server.post("/admin/budget", body)
            assert answer.status_code == 400
            assert says in answer.json()["error"]["message"]
    finally:
        answer = server.post("/admin/budget", {"memory": before, "host_memory": before})
    assert answer.json() == {
        "total_bytes": before, "disk_bytes": None,
        **{name: server.stats()["memory"][name] for name in ("leased_bytes", "free_bytes")},
    }  # fmt: skip
