"""The log: JSON lines with request ids, no prompts and no keys unless prompts are asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagoda import ConfigError
from pagoda.server.keys import Keys
from pagoda.server.logs import log_requests, set_up


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asked(serve, file: Path, *, with_prompts: bool) -> list[dict]:
    server = serve(keys=Keys({"ada": "correct-horse-battery"}))
    set_up("json", "info", str(file))
    log_requests(server.service, with_prompts=with_prompts)
    headers = {"authorization": "Bearer correct-horse-battery", "x-request-id": "my-request-7"}
    body = {"prompt": "A secret story about", "max_tokens": 4, "ignore_eos": True, "user": "customer 5"}
    assert server.post("/v1/completions", body, headers=headers).status_code == 200
    assert server.post("/v1/completions", body | {"kv": "nonsense"}, headers=headers).status_code == 400
    return [record for record in records(file) if record["logger"] == "pagoda.server.logs"]


def test_requests_are_told_without_their_words(serve, tmp_path: Path) -> None:
    good, bad = asked(serve, tmp_path / "log", with_prompts=False)
    assert good["request_id"] == "my-request-7"
    assert (good["endpoint"], good["key"], good["status"]) == ("completions", "ada", 200)
    assert good["user"] == "customer 5"
    assert good["completion_tokens"] == 4
    assert good["prompt_tokens"] > 0
    assert good["time"].endswith("Z")
    assert bad["status"] == 400
    text = (tmp_path / "log").read_text()
    assert "secret" not in text
    assert "correct-horse" not in text


def test_words_are_told_where_they_are_asked_for(serve, tmp_path: Path) -> None:
    good, _ = asked(serve, tmp_path / "log", with_prompts=True)
    assert good["prompts"] == ["A secret story about"]
    assert isinstance(good["answers"][0][0], str)
    assert "correct-horse" not in (tmp_path / "log").read_text()


def test_a_traceback_is_one_line(tmp_path: Path) -> None:
    set_up("json", "warning", str(tmp_path / "log"))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("failed: %s", 'a "quoted" thing')
    logging.getLogger("x").info("below the level")
    (record,) = records(tmp_path / "log")
    assert record["message"] == 'failed: a "quoted" thing'
    assert "ValueError: two\nlines" in record["traceback"]


@pytest.mark.parametrize(
    ("form", "level", "file", "says"),
    [
        ("xml", "info", None, "unknown log format 'xml'; accepted: json, text"),
        ("json", "loud", None, "unknown log level 'loud'"),
        ("json", "info", "/nonexistent/log", "log file '/nonexistent/log' cannot be written"),
    ],
)
def test_bad_wishes_are_refused(form, level, file, says) -> None:
    with pytest.raises(ConfigError) as error:
        set_up(form, level, file)
    assert says in str(error.value)
