"""``pagoda serve`` as a person starts it: it says where it is, answers, logs a line a request, and ends on SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ..server.otlp import collecting
from .conftest import pagoda


def test_it_starts_answers_logs_traces_and_ends(tmp_path) -> None:
    pytest.importorskip("opentelemetry.exporter", reason="needs the otel extra")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "pagoda", "serve", "lantern", "--memory", "1GiB", "--threads", "1", "--port", "0"]
    command += ["--quantization", "int8", "--kv-cache-dtype", "int8", "--max-model-len", "256"]
    with collecting() as collector:
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "story-teller"}
        with subprocess.Popen(
            [*command, "--json", "--log-format", "json", "--log-file", str(log), "--otel"],
            stdout=subprocess.PIPE, env=environment,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            url = json.loads(child.stdout.readline())["url"]
            answer = httpx.post(
                f"{url}/v1/completions", json={"prompt": "A private story", "max_tokens": 3}, timeout=30
            )
            assert answer.status_code == 200
            assert "vllm:generation_tokens_total" in httpx.get(f"{url}/metrics").text
            assert httpx.get(f"{url}/").status_code == 200
            made = httpx.get(f"{url}/admin/stats").json()["model"]
            assert (made["quantization"], made["max_model_len"]) == ("int8", 256)
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
    assert {"completions lantern", "queue", "prefill", "decode"} == {span.name for span in collector.spans}
    assert collector.services == {"story-teller"}
    assert b"private" not in b"".join(span.SerializeToString() for span in collector.spans)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (told,) = [record for record in records if record.get("endpoint") == "completions"]
    assert told["status"] == 200
    assert "private" not in log.read_text()


def test_it_tells_people_where_it_is_and_takes_a_load(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pagoda", "serve", "lantern", "--memory", "1GiB", "--threads", "1", "--port", "0"]
    with subprocess.Popen(
        [*command, "--scheduling", "sarathi_serve(tbt=0.05)"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        url = re.search(r"serving lantern at (http://\S+)", child.stdout.readline())
        assert url is not None
        words = "--requests 4 --rate 20 --prompt-tokens 20 --output-tokens 3 --vocab-size 200 --json"
        done = pagoda("bench", "serve", url[1], *words.split(), "--users", "1,2", "--out", str(tmp_path))
        runs = done.json["runs"]
        assert [(r["users"], r["num_requests"], r["num_failed"]) for r in runs] == [(1, 4, 0), (2, 4, 0)]
        assert all("most_running" in r["server"] for r in runs)  # from the server's own metrics
        assert {p.name for p in tmp_path.iterdir()} > {"report.html", "sweep.png", "users-1", "users-2"}
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
        assert "leaked" not in child.stderr.read()


def test_several_models_start_and_end(tmp_path: Path) -> None:
    from ..engine.tiny import make_model

    folder = str(make_model(tmp_path / "tiny"))
    command = [sys.executable, "-m", "pagoda", "serve", "lantern", folder, "--memory", "1GiB", "--threads", "1"]
    command += ["--port", "0", "--json", "--served-model-name", "a", "--served-model-name", "b", "--pin", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        made = json.loads(child.stdout.readline())
        assert made["models"] == ["a", "b"]
        ask = {"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True}
        for name in ("b", "a"):
            answer = httpx.post(f"{made['url']}/v1/completions", json=ask | {"model": name}, timeout=30).json()
            assert (answer["model"], answer["usage"]["completion_tokens"]) == (name, 3)
        memory = httpx.get(f"{made['url']}/admin/stats").json()["memory"]
        assert memory["rss_bytes"] <= memory["leased_bytes"] <= memory["total_bytes"]
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
        logged = child.stderr.read()
    assert "model b is loaded" in logged
    assert "leaked" not in logged
