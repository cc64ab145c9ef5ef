"""``/v1/completions``: honoured field by field, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Running

STORY = {"model": "lantern", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}


def ask(server: Running, **changes: Any) -> Any:
    done = server.post("/v1/completions", STORY | changes)
    assert done.status_code == 200, done.text
    return done.json()


def events(server: Running, **changes: Any) -> list[Any]:
    with server.http.stream("POST", "/v1/completions", json=STORY | {"stream": True} | changes) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_greedy_completion(server: Running) -> None:
    answer = ask(server)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "lantern"
    assert answer["choices"] == [
        {"index": 0, "text": ", there was a little girl named Lily", "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["metrics"]["kv_bytes_peak"] > 0
    assert answer["metrics"]["first_token_seconds"] > 0


def test_a_stream_says_the_same(server: Running) -> None:
    chunks = events(server, stream_options={"include_usage": True})
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == ask(server)["choices"][0]["text"]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-1] == "length"
    assert all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_prompts_in_every_form_give_choices_in_order(server: Running) -> None:
    ids = server.service.llm.tokenizer.encode("Once upon a time")
    one = ask(server)["choices"][0]["text"]
    for prompt in (ids, ["Once upon a time"], [ids, ids], ["The cat", "Once upon a time"]):
        choices = ask(server, prompt=prompt)["choices"]
        assert [c["index"] for c in choices] == list(range(len(choices)))
        assert choices[-1]["text"] == one
    chunks = events(server, prompt=["Once upon a time", "The cat"])
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [c["text"] for c in ask(server, prompt=["Once upon a time", "The cat"])["choices"]]


def test_n_seed_stop_and_best_of(server: Running) -> None:
    many = ask(server, n=3, temperature=1, seed=5)["choices"]
    assert [c["index"] for c in many] == [0, 1, 2]
    assert many == ask(server, n=3, temperature=1, seed=5)["choices"]
    assert len({c["text"] for c in many}) > 1
    stopped = ask(server, stop=["little"], max_tokens=20)["choices"][0]
    assert stopped["text"] == ", there was a "
    assert stopped["finish_reason"] == "stop"
    kept = ask(server, stop="little", max_tokens=20, include_stop_str_in_output=True)["choices"][0]["text"]
    assert kept.endswith("little")
    assert len(ask(server, best_of=3, temperature=1, seed=1)["choices"]) == 1
    banned = server.service.llm.tokenizer.encode(",", add_special_tokens=False)[0]
    assert not ask(server, logit_bias={str(banned): -100})["choices"][0]["text"].startswith(",")


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_scores_a_prompt_as_harnesses_ask(server: Running, max_tokens: int) -> None:
    """What lm-eval's local-completions does for a loglikelihood: token ids, echo, logprobs 1, max_tokens 1 (or 0)."""
    tokenizer = server.service.llm.tokenizer
    context, whole = tokenizer.encode("Once upon a time"), tokenizer.encode("Once upon a time, there was a little girl")
    choice = ask(server, prompt=[whole], echo=True, logprobs=1, max_tokens=max_tokens, seed=1234)["choices"][0]
    logprobs = choice["logprobs"]
    num = len(whole) + max_tokens
    assert [len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [num] * 4
    assert logprobs["token_logprobs"][0] is None
    assert choice["text"].startswith("Once upon a time, there was a little girl")
    assert "".join(logprobs["tokens"]).endswith(choice["text"])
    continuation = slice(len(context), len(whole))
    scored = logprobs["token_logprobs"][continuation]
    assert all(
        max(top.values()) == own for own, top in zip(scored, logprobs["top_logprobs"][continuation], strict=True)
    )
    assert sum(scored) == pytest.approx(offline_score(context, whole), abs=1e-3)
    for offset, token in list(zip(logprobs["text_offset"], logprobs["tokens"], strict=True))[1:]:
        assert choice["text"][offset:].startswith(token)


def offline_score(context: list[int], whole: list[int]) -> float:
    """The same sum by transformers, which knows nothing of us."""
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM

    import pagoda

    folder = Path(pagoda.__file__).parent / "assets" / "lantern"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, whole[i]]) for i in range(len(context), len(whole)))


def test_logprobs_of_an_answer_and_its_stream(server: Running) -> None:
    logprobs = ask(server, logprobs=3)["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == ", there was a little girl named Lily"
    assert all(len(top) == 3 for top in logprobs["top_logprobs"])
    chunks = [c["choices"][0]["logprobs"] for c in events(server, logprobs=3)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for chunk in chunks for value in chunk[name]] == logprobs[name]
    echoed = events(server, echo=True, logprobs=0)
    assert "".join(c["choices"][0]["text"] for c in echoed).startswith("Once upon a time, there")
    assert echoed[0]["choices"][0]["logprobs"]["token_logprobs"][0] is None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temp": 1}, "temp"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"suffix": " the end."}, "suffix"),
        ({"n": 0}, "n"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, None),
        ({"kv": "unheard-of"}, None),
        ({"prompt": []}, None),
        ({"prompt": ""}, None),
        ({"prompt": [1, 99999999]}, None),
        ({"prompt": "word " * 3000}, None),
        ({"stop": [""]}, None),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
    ],
)
def test_what_is_refused_is_named(server: Running, changes: dict[str, Any], param: str | None) -> None:
    done = server.post("/v1/completions", STORY | changes)
    error = done.json()["error"]
    assert done.status_code == 400, done.text
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param
    if param is not None and "." not in param:
        assert param in error["message"]


def test_another_model_is_not_found(server: Running) -> None:
    for name in ("gpt-4", "../../etc/passwd"):
        done = server.post("/v1/completions", STORY | {"model": name})
        assert (done.status_code, done.json()["error"]["code"]) == (404, "model_not_found")


def test_suffix_is_honoured_where_the_model_has_infilling_tokens() -> None:
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Backend

    from pagoda.models.tokenizer import Tokenizer
    from pagoda.server.infill import infill_ids

    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.add_special_tokens([AddedToken(f"<fim_{n}>", special=True) for n in ("prefix", "suffix", "middle")])
    assert infill_ids(Tokenizer(backend, {}), "a", "b") == [2, 0, 3, 1, 4]
