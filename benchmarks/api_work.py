"""HTTP requests drawn at random over every endpoint. What is drawn is a function of the generator alone."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

from .mixed_work import random_kv

Body = dict[str, Any]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "weather", "description": "Weather of a town.", "parameters": SCHEMA},
    {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
]
FORMS: tuple[Body, ...] = (
    {"regex": "[a-f]{3,12}(-[0-9]{1,4})*"},
    {"choice": ["yes", "no", "perhaps"]},
    {"json": SCHEMA},
    {"json_object": True, "compact": True},
    {"grammar": 'start: ("ab" | "cd")+ "."'},
)
STREAMING = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")
WORDS = (
    "Once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "little",
    "girl",
    "Lily",
    "who",
    "lived",
    "old",
    "7",
    "ünï",
    "✓",
    ".",
)
NONSENSE: tuple[Any, ...] = (
    None, -1, 0, 1.5, True, "", "x", [], {}, [None], 2**31, 2**63, 10**30, -(10**30), float("nan"), float("inf"),
    "\ud800", "\x00", {"a": 1}, [[]], "snapkv(budget=", "h2o(budget=-1)", "exact+exact", "int8+snapkv", "kv" * 200,
)  # fmt: skip
BROKEN = (
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe" * 30, b'{"prompt": "\xff"}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "unheard": 1}', b'{"prompt": "a", "prompt": }', b"[" * 5000, b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'{"prompt": "a", "n": 1000000}', b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "a", "best_of": 100000}',
    b'{"prompt": "a", "kv": "snapkv(budget=2"}', b'{"prompt": "a", "kv": "unheard"}', b'{"prompt": [1, "a"]}',
    b'{"prompt": [], "max_tokens": 1}', b'{"prompt": [99999999]}', b'{"prompt": "a", "logit_bias": {"x": 1}}',
    json.dumps({"prompt": "word " * 5000}).encode(), b'{"messages": [], "input": [], "max_tokens": 1}',
    b'{"prompt": "a", "structured_outputs": {"regex": "(((("}}', b'{"prompt": "a", "max_tokens": 1e400}',
)  # fmt: skip


@dataclass
class Ask:
    """``kind``: good (an answer is owed), left (the client goes), odd (a field is wrong), broken (400 is owed)."""

    path: str
    body: Body | bytes
    kind: str = "good"
    delay: float = 0.0

    @property
    def streams(self) -> bool:
        return isinstance(self.body, dict) and self.body.get("stream") is True

    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def draw(rng: random.Random, seconds: float, *, offloads: bool) -> Ask:
    """One request of any kind."""
    make = rng.choice([_completion, _completion, _chat, _chat, _messages, _responses, _small])
    path, body = make(rng, offloads)
    if path in STREAMING and rng.random() < 0.5:
        body["stream"] = True
    kind = rng.choices(["good", "left", "odd", "broken"], [60, 12, 18, 10])[0]
    if kind == "broken":
        return Ask(path, rng.choice(BROKEN), kind, rng.random() * seconds)
    if kind == "odd":
        _spoil(rng, body)
        if path == "/v1/responses":  # a stored one would rightly hold bytes and pages afterwards
            body["store"] = False
    return Ask(path, body, kind, rng.random() * seconds)


def _text(rng: random.Random, most: int = 200) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(min(most, max(1, round(rng.lognormvariate(3, 1.2))))))


def _common(rng: random.Random, offloads: bool) -> Body:
    """What all that answer with tokens take. The seed is also that of methods that draw."""
    body: Body = {"kv": random_kv(rng, offloads=offloads)} if rng.random() < 0.6 else {}
    body |= {"temperature": 0} if rng.random() < 0.7 else {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
    body["seed"] = 5
    if rng.random() < 0.2:
        body["cache_salt"] = rng.choice(["a", "b"])
    return body


def _sampling(rng: random.Random) -> Body:
    body: Body = {"max_tokens": rng.randrange(1, 50)}
    kind = rng.choice(["", "", "n", "stop", "penalty", "bias", "eos", "form", "form"])
    if kind == "n":
        body |= {"n": rng.randrange(2, 5), "temperature": 1.0}
    elif kind == "stop":
        body |= {"stop": rng.sample(["e", "th", ". ", "a ", "\n"], 2), "include_stop_str_in_output": rng.random() < 0.5}
    elif kind == "penalty":
        body |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.2, "min_tokens": 1}
    elif kind == "bias":
        body |= {"logit_bias": {str(rng.randrange(300, 2000)): rng.choice([-100, 5])}, "min_p": 0.01}
    elif kind == "eos":
        body["ignore_eos"] = True
    elif kind == "form":
        body["structured_outputs"] = rng.choice(FORMS)
    return body


def _completion(rng: random.Random, offloads: bool) -> tuple[str, Body]:
    ids = [rng.randrange(300, 2000) for _ in range(rng.randrange(1, 300))]
    body = {"prompt": rng.choice([_text(rng), ids, [_text(rng), _text(rng)]])} | _common(rng, offloads) | _sampling(rng)
    if rng.random() < 0.3:
        body["logprobs"] = rng.randrange(5)
    if rng.random() < 0.15:
        body["echo"] = True
    return "/v1/completions", body


def _dialogue(rng: random.Random) -> list[Body]:
    told = [{"role": rng.choice(["user", "assistant"]), "content": _text(rng, 60)} for _ in range(rng.randrange(3))]
    return [*told, {"role": "user", "content": _text(rng)}]


def _chat(rng: random.Random, offloads: bool) -> tuple[str, Body]:
    body: Body = {"messages": _dialogue(rng)} | _common(rng, offloads) | _sampling(rng)
    if rng.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": rng.randrange(4)}
    if "structured_outputs" not in body and "stop" not in body and rng.random() < 0.4:
        body["tools"] = [{"type": "function", "function": tool | {"strict": rng.random() < 0.3}} for tool in TOOLS]
        body["tool_choice"] = rng.choice(
            ["auto", "required", {"type": "function", "function": {"name": "add"}}, "none"]
        )
        body |= {"max_tokens": rng.randrange(10, 120)} | ({"parallel_tool_calls": False} if rng.random() < 0.3 else {})
    elif "structured_outputs" not in body and rng.random() < 0.3:
        spec = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
        body["response_format"] = rng.choice([spec, {"type": "json_object"}, {"type": "text"}])
    if rng.random() < 0.3:
        body["stream_options"] = {"include_usage": True}
    return "/v1/chat/completions", body


def _messages(rng: random.Random, offloads: bool) -> tuple[str, Body]:
    body: Body = {"messages": _dialogue(rng), "max_tokens": rng.randrange(1, 50)} | _common(rng, offloads)
    del body["seed"]  # not known here: nothing that draws
    body["temperature"] = 0
    if any(name in body.get("kv", "") for name in ("random", "subgen")):
        del body["kv"]
    if rng.random() < 0.3:
        body |= {"tools": [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in TOOLS]}
        body["tool_choice"] = rng.choice([{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "add"}])
    elif rng.random() < 0.3:
        body["stop_sequences"] = [". "]
    return "/v1/messages", body


def _responses(rng: random.Random, offloads: bool) -> tuple[str, Body]:
    body: Body = {"input": rng.choice([_text(rng), _dialogue(rng)]), "max_output_tokens": rng.randrange(1, 50)}
    body |= _common(rng, offloads) | {"store": False}
    if rng.random() < 0.3:
        body["tools"] = [{"type": "function", **tool} for tool in TOOLS]
        body["tool_choice"] = rng.choice(["auto", "required"])
    elif rng.random() < 0.3:
        body["text"] = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}
    return "/v1/responses", body


def _small(rng: random.Random, _: bool) -> tuple[str, Body]:
    """Without tokens of an answer."""
    return rng.choice([
        ("/v1/embeddings", {"input": [_text(rng), _text(rng)], "pooling": rng.choice(["mean", "last"])}),
        ("/v1/embeddings", {"input": _text(rng), "encoding_format": "base64", "dimensions": 32}),
        ("/tokenize", {"prompt": _text(rng), "return_token_strs": True}),
        ("/tokenize", {"messages": _dialogue(rng)}),
        ("/detokenize", {"tokens": [rng.randrange(2000) for _ in range(30)]}),
        ("/v1/messages/count_tokens", {"messages": _dialogue(rng)}),
    ])  # fmt: skip


def _spoil(rng: random.Random, body: Body) -> None:
    """A field, at any depth, becomes what it should not be, goes, or comes."""
    at: Any = body
    for key in list(body):  # shared constants stay as they are
        body[key] = copy.deepcopy(body[key])
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if rng.random() < 0.5 or not isinstance(at[key], dict | list) or not at[key]:
            break
        at = at[key]
    what = rng.random()
    if what < 0.1:
        del at[key]
    elif what < 0.2 and isinstance(at, dict):
        at["unheard"] = 1
    else:
        at[key] = rng.choice(NONSENSE)
