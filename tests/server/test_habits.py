"""Clients that nobody named: what they send beside the documented fields, and how they read."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from .conftest import Running

USER = [{"role": "user", "content": "Tell me a story."}]
CHAT = {"model": "lantern", "messages": USER, "max_tokens": 6, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
NULLS = (
    "logprobs", "top_logprobs", "n", "stop", "seed", "stream", "stream_options", "frequency_penalty", "user",
    "presence_penalty", "logit_bias", "response_format", "tools", "tool_choice", "parallel_tool_calls", "metadata",
    "max_completion_tokens", "reasoning_effort", "service_tier", "store", "modalities", "ignore_eos",
    "skip_special_tokens", "include_stop_str_in_output", "structured_outputs", "cache_control", "kv", "priority",
)  # fmt: skip


def test_null_is_the_default_of_every_field(server: Running) -> None:
    plain = server.post("/v1/chat/completions", CHAT)
    nulls = server.post("/v1/chat/completions", CHAT | dict.fromkeys(NULLS))
    assert nulls.status_code == 200, nulls.text
    assert nulls.json()["choices"] == plain.json()["choices"]
    text = {"model": "lantern", "prompt": "A fox", "temperature": 0}
    names = ("echo", "logprobs", "best_of", "suffix", "max_tokens", "stream", "n", "user", "stop")
    nulls = server.post("/v1/completions", text | dict.fromkeys(names))
    assert nulls.json()["choices"] == server.post("/v1/completions", text).json()["choices"]
    assert nulls.json()["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize(
    "extra",
    [
        {"stream": True, "stream_options": {"include_usage": True}},  # LangChain, streaming
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"logprobs": True, "top_logprobs": 5, "n": 2, "tools": [TOOL], "parallel_tool_calls": False},
        {"logprobs": True, "tools": [TOOL], "tool_choice": "auto", "stream": True},
        {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": True},
        {"parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"frequency_penalty": 0, "presence_penalty": 0, "top_p": 1, "n": 1, "temperature": 1},  # whole numbers
        {"stop": [], "logit_bias": {}, "metadata": {}},
    ],
)
def test_combinations_as_libraries_send_them(server: Running, extra: dict) -> None:
    done = server.post("/v1/chat/completions", CHAT | extra)
    assert done.status_code == 200, done.text
    if extra.get("stream"):
        assert done.text.endswith("data: [DONE]\n\n")
    else:
        assert len(done.json()["choices"]) == extra.get("n", 1)


def test_curl_reads_a_stream_line_by_line(server: Running) -> None:
    command = ["curl", "-sN", "--max-time", "30", f"{server.url}/v1/chat/completions"]
    body = json.dumps(CHAT | {"stream": True})
    done = subprocess.run(
        [*command, "-H", "Content-Type: application/json", "-d", body], capture_output=True, text=True, check=True
    )
    events = [line for line in done.stdout.split("\n") if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    deltas = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in events[:-1]]
    whole = server.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"]
    assert "".join(deltas) == whole  # in how many pieces depends on who is faster
    form = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True)  # curl's own content type
    assert json.loads(form.stdout)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "says"),
    [("/api/chat", "Ollama"), ("/api/generate", "Ollama"), ("/chat/completions", "/v1/"), ("/completion", "/v1/")],
)
def test_other_servers_paths_are_not_here_and_the_answer_says_where_to_go(
    server: Running, path: str, says: str
) -> None:
    done = server.post(path, {"model": "lantern", "prompt": "x"})
    assert (done.status_code, done.json()["error"]["type"]) == (404, "not_found_error")
    assert path in done.json()["error"]["message"]
    assert says in done.json()["error"]["message"]


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[0-9]{4}-[0-9]{2}"}, r"\d{4}-\d{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "(" /[a-c]{3}/ ")"'}, r"\([abc]{3}\)"),
        ({"json": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                   "additionalProperties": False}, "compact": True}, r'\{"a":(true|false)\}'),
    ],
)  # fmt: skip
def test_forms_by_the_names_of_vllm(server: Running, form: dict, pattern: str) -> None:
    ask = {"structured_outputs": form, "max_tokens": 40}
    texts = [
        server.post("/v1/completions", {"prompt": "Answer: "} | ask).json()["choices"][0]["text"],
        server.post("/v1/chat/completions", CHAT | ask).json()["choices"][0]["message"]["content"],
        server.post("/v1/messages", {"messages": USER} | ask).json()["content"][0]["text"],
        server.post("/v1/responses", {"input": "hi", "structured_outputs": form}).json()["output"][0]["content"][0][
            "text"
        ],
    ]
    for text in texts:
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"priority": 3}, "priority"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_is_refused_is_named(server: Running, changes: dict, param: str) -> None:
    done = server.post("/v1/chat/completions", CHAT | changes)
    assert (done.status_code, done.json()["error"]["param"]) == (400, param), done.text
