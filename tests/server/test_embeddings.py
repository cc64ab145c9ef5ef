"""``/v1/embeddings`` against transformers' hidden states."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import pytest
import torch

import pagoda

from .conftest import Running

TEXTS = ["Once upon a time", "The cat sat on the mat and looked at the moon."]


@pytest.fixture(scope="module")
def expected(server: Running) -> dict[str, list[torch.Tensor]]:
    from transformers import AutoModelForCausalLM

    folder = Path(pagoda.__file__).parent / "assets" / "lantern"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    states = []
    with torch.inference_mode():
        for text in TEXTS:
            ids = torch.tensor([server.service.llm.tokenizer.encode(text)])
            states.append(model.model(ids).last_hidden_state[0])
    return {"mean": [s.mean(0) for s in states], "last": [s[-1] for s in states]}


def close(got: list[float], want: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(got), want / want.norm(), atol=2e-3)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_transformers(server: Running, expected: dict, pooling: str) -> None:
    for _ in range(2):  # the second time the prefix cache knows the texts
        answer = server.post("/v1/embeddings", {"input": TEXTS, "pooling": pooling}).json()
        assert [item["index"] for item in answer["data"]] == [0, 1]
        for item, want in zip(answer["data"], expected[pooling], strict=True):
            assert close(item["embedding"], want)
            assert sum(x * x for x in item["embedding"]) == pytest.approx(1, abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == sum(len(server.service.llm.tokenizer.encode(t)) for t in TEXTS)


def test_dimensions_and_base64(server: Running, expected: dict) -> None:
    body = {"input": TEXTS[0], "dimensions": 16, "encoding_format": "base64"}
    raw = base64.b64decode(server.post("/v1/embeddings", body).json()["data"][0]["embedding"])
    assert close(list(struct.unpack("<16f", raw)), expected["mean"][0][:16])


def test_a_long_input_is_pooled_chunk_by_chunk(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [5 + i % 900 for i in range(600)]
    whole = server.post("/v1/embeddings", {"input": ids}).json()["data"][0]["embedding"]
    limits = server.service.llm._built.engine.scheduler.limits
    monkeypatch.setattr(server.service.llm._built.engine.scheduler, "limits", type(limits)(64, 8))
    chunked = server.post("/v1/embeddings", {"input": ids}).json()["data"][0]["embedding"]
    assert chunked == pytest.approx(whole, abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"dimensions": 100000}, "dimensions"),
        ({"pooling": "max"}, "pooling"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"input": ""}, None),
        ({"input": [[]]}, None),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_is_refused(server: Running, changes: dict, param: str | None) -> None:
    done = server.post("/v1/embeddings", {"input": "a"} | changes)
    assert done.status_code == 400, done.text
    if param:
        assert done.json()["error"]["param"] == param
