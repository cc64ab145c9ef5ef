"""The page's files: all of this server, none from elsewhere, no way to other files; the state that it draws."""

from __future__ import annotations

import re

import pytest

from pagoda.server.keys import Keys
from pagoda.server.routes.page import _files

from ..conftest import Running


def test_the_page_is_served_with_a_strict_policy(server: Running) -> None:
    answer = server.http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    for name in re.findall(r'(?:src|href)="(page/[^"]+)"', answer.text):
        assert server.http.get("/" + name).status_code == 200


def test_no_file_names_another_host() -> None:
    for name, data in _files().items():
        hosts = re.findall(r"https?://[^\s\"')]+", data.decode())
        assert set(hosts) <= {"http://www.w3.org/2000/svg"}, name


@pytest.mark.parametrize(
    "path", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "__init__.py", "index.html/", "x", "%00"]
)
def test_only_the_files_of_the_page_are_there(server: Running, path: str) -> None:
    assert server.http.get("/page/" + path).status_code in (404, 307, 405)


def test_the_state_is_whole_and_small(server: Running) -> None:
    state = server.http.get("/api/state").json()
    assert state["state"] == "ready"
    assert state["model"]["name"] == "lantern"
    assert state["memory"]["accounts"]["weights"]["leased_bytes"] > 1 << 20
    assert {"num_layers", "num_kv_heads", "used_bytes", "max_blocks"} <= state["kv"].keys()
    assert {"queue", "steps", "sequences", "prefix", "time"} <= state.keys()
    assert len(server.http.get("/api/state").content) < 60_000


def test_the_state_needs_the_key_and_the_page_does_not(serve) -> None:
    guarded = serve(keys=Keys({"ada": "correct-horse-battery"}))
    assert guarded.http.get("/").status_code == 200
    assert guarded.http.get("/page/app.js").status_code == 200
    assert guarded.http.get("/api/state").status_code == 401
    headers = {"authorization": "Bearer correct-horse-battery"}
    assert guarded.http.get("/api/state", headers=headers).status_code == 200
