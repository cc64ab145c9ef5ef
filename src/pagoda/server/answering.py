"""The way of every generating endpoint: prepare, submit, then one JSON answer or a stream of events.

What can be refused is refused before the status line: a stream begins only once the engine has accepted the request.
Later errors are an event of the stream, and its end.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..core.errors import ConfigError, PagodaError
from ..engine.outputs import RequestOutput
from ..engine.request import Request as EngineRequest
from ..sampling.params import SamplingParams
from .conversation import Conversation
from .errors import ApiError, bad, translated
from .jobs import Job
from .service import Service
from .streams import DONE, EventStream, encode, event, while_connected
from .thinking import Thoughts

_log = logging.getLogger(__name__)


class Answering(ABC):
    """One request of one endpoint: what is asked of the engine, and how its outputs are told."""

    @abstractmethod
    def prepare(self, job: Job) -> list[Callable[[str], EngineRequest]]:
        """Engine requests to make; each function gets its request id and runs in a worker thread."""

    @abstractmethod
    def whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        """The answer in one piece. ``outputs`` are finished, one for each engine request."""

    @abstractmethod
    def events(self, index: int, output: RequestOutput) -> bytes:
        """Events for the news of engine request ``index``; nothing if there is nothing to say."""

    @abstractmethod
    def last_events(self, outputs: list[RequestOutput], held_bytes: int) -> bytes:
        """Events after the last output."""

    def first_events(self) -> bytes:
        """Events before the first output."""
        return b""

    def error_events(self, error: ApiError) -> bytes:
        """How a stream that has begun ends in an error."""
        return event(error.body()) + DONE

    async def ended(self, job: Job, outputs: list[RequestOutput]) -> int:
        """After the last output, before the answer's end is told; returns the KV bytes that stay pinned."""
        return 0


async def answer(request: Request, service: Service, job: Job, asked: Answering, *, stream: bool) -> Response:
    """Runs the job. Raises ApiError or PagodaError as long as nothing was sent."""
    try:
        await while_connected(request, job.submit(asked.prepare(job)))
        if not stream:
            outputs, held = await while_connected(request, _finish(job, asked))
            return Response(encode(asked.whole(outputs, held)), media_type="application/json")
    except BaseException as error:
        await job.end(error)
        raise
    return EventStream(service, _events(job, asked), job.end)


async def _finish(job: Job, asked: Answering) -> tuple[list[RequestOutput], int]:
    async with job:
        outputs = await job.finish()
        return outputs, await asked.ended(job, outputs)


async def _events(job: Job, asked: Answering) -> AsyncGenerator[bytes, None]:
    last: dict[int, RequestOutput] = {}
    try:
        async with job:
            first = asked.first_events()
            if first:
                yield first
            while job.open:
                news = await job.take()
                chunk = b"".join([asked.events(index, output) for index, output in news])
                last.update(news)
                if chunk:
                    yield chunk
            outputs = [last[index] for index in sorted(last)]
            held = await asked.ended(job, outputs)
            yield asked.last_events(outputs, held)
    except PagodaError as error:
        yield asked.error_events(translated(error))
    except ApiError as error:
        yield asked.error_events(error)
    except Exception:  # a bug of ours: the client is told that it is over, the log has the traceback
        _log.exception("request %s: the stream failed", job.request_id)
        yield asked.error_events(ApiError(500, "internal error; the server's log has the details", code="internal"))


def conversation_request(
    service: Service, job: Job, conversation: Conversation, params: SamplingParams, body: Any,
    thoughts: Thoughts | None = None,
) -> list[Callable[[str], EngineRequest]]:  # fmt: skip
    """The one engine request of a conversation; rendered and tokenized in the worker thread."""
    salt = service.salt(job.caller, body.cache_salt)

    def make(request_id: str) -> EngineRequest:
        ids, wanted = conversation.ids(service.llm), params
        if thoughts is not None:
            wanted = replace(params, closing=thoughts.closing(conversation.rendered))
        return service.llm.prepare(ids, wanted, request_id=request_id, salt=salt, stream=body.stream)

    return [make]


def check_stream(body: Any, params: SamplingParams) -> None:
    """Raises ApiError or ConfigError for options of a stream without one, and for what a stream cannot tell."""
    if body.stream:
        refuse_unstreamable(params)
    elif body.stream_options is not None:
        raise bad("stream_options", "stream_options: there is no stream; set stream to true, or leave it out")


def refuse_unstreamable(params: SamplingParams) -> None:
    """Raises ConfigError: answers that are chosen at the end cannot be told while they grow."""
    if (params.best_of or params.n) > params.n:
        raise ConfigError(
            f"best_of={params.best_of}: a stream cannot choose among answers at its end; leave best_of out"
        )
