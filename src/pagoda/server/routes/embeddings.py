"""``/v1/embeddings``: hidden states of the prompt, pooled, of length one."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...engine.outputs import RequestOutput
from ...engine.request import Request as EngineRequest
from ...sampling.params import SamplingParams
from ..answering import Answering, answer
from ..errors import bad
from ..jobs import Job
from ..prompts import listed
from ..report import metrics_of
from ..schemas.embeddings import EmbeddingAnswer, EmbeddingRequest
from ..service import Service
from .base import ASKS, caller_of, request_id_of, served

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingAnswer, responses=ASKS)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """One vector for each input."""
    service = await served(request, body.model)
    asked = _Embedding(service, body)
    job = service.job(request_id_of(request), "embeddings", caller_of(request), len(asked.prompts), user=body.user)
    return await answer(request, service, job, asked, stream=False)


class _Embedding(Answering):
    def __init__(self, service: Service, body: EmbeddingRequest) -> None:
        self.service, self.body = service, body
        self.model = service.check_model(body.model)
        service.check_priority(body.priority)
        self.prompts = listed(body.input)
        size = service.llm.loaded.shape.hidden_size
        if body.dimensions is not None and body.dimensions > size:
            raise bad("dimensions", f"dimensions={body.dimensions}: this model's embeddings have {size}")

    def prepare(self, job: Job) -> list[Callable[[str], EngineRequest]]:
        salt = self.service.salt(job.caller, self.body.cache_salt)
        return [partial(self._prepare, prompt, salt) for prompt in self.prompts]

    def _prepare(self, prompt: str | list[int], salt: str, request_id: str) -> EngineRequest:
        return self.service.llm.prepare(
            prompt, SamplingParams(max_tokens=1), request_id=request_id, salt=salt, priority=self.body.priority,
            pooling=self.body.pooling,
        )  # fmt: skip

    def whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        num_tokens = sum(output.usage.prompt_tokens for output in outputs)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._vector(output)}
                for index, output in enumerate(outputs)
            ],
            "model": self.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "metrics": metrics_of(outputs, held_bytes),
        }

    def _vector(self, output: RequestOutput) -> list[float] | str:
        assert output.embedding is not None
        vector = normalized(output.embedding[: self.body.dimensions])
        if self.body.encoding_format == "float":
            return vector
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

    def events(self, index: int, output: RequestOutput) -> bytes:
        raise AssertionError("embeddings are not streamed")

    def last_events(self, outputs: list[RequestOutput], held_bytes: int) -> bytes:
        raise AssertionError("embeddings are not streamed")


def normalized(vector: list[float]) -> list[float]:
    """The same direction with length one; a zero vector stays."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length > 0 else vector
