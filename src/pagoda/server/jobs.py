"""The engine's side of one HTTP request: admitted, submitted together, read together, and always ended.

gate.enter -> prepare (tokenize, in a worker thread) -> reserve KV -> engine -> take, take, … -> leave
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.types import FinishReason
from ..engine.outputs import RequestOutput
from ..engine.request import Request
from .buffers import LOGPROB_BYTES
from .errors import ApiError
from .gate import Ticket
from .keys import Caller

if TYPE_CHECKING:
    from .service import Service


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Published on ``service.events`` when an HTTP request's part in the engine is over, however it ended.

    ``outputs``: the last that was known of each of its engine requests (none where it was refused before the engine
    saw it); ``status``: the HTTP status, or that of the error which ended a stream; ``arrival`` and ``ended`` on the
    engine's clock; ``labels``: what the client said about the request itself (``user``, ``metadata``).
    """

    request_id: str
    endpoint: str
    caller: str
    outputs: tuple[RequestOutput, ...]
    status: int
    arrival: float
    ended: float
    labels: dict[str, Any] = field(default_factory=dict)


class Job:
    """Use as ``async with service.job(…) as job``. Leaving it aborts what still runs and frees its pages."""

    def __init__(
        self, service: Service, request_id: str, endpoint: str, caller: Caller, num_requests: int = 1,
        labels: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._service, self.request_id, self.endpoint, self.caller = service, request_id, endpoint, caller
        self.ticket: Ticket = service.gate.enter(caller, num_requests)
        self.arrival = service.now()
        self.deadline = self.arrival + service.config.request_timeout
        self.requests: list[Request] = []
        self.labels = {name: value for name, value in (labels or {}).items() if value}
        self._last: dict[str, RequestOutput] = {}
        self._answers = None
        self._error: Exception | None = None
        self._held_bytes = 0
        service.jobs.add(self)

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.end(error)

    async def submit(self, prepare: Sequence[Callable[[str], Request]]) -> None:
        """Runs the preparations in a worker thread (each gets its engine request's id), then queues all or none.

        Raises ApiError or PagodaError; the caller's answer has not begun then.
        """
        try:
            ids = [self.request_id if len(prepare) == 1 else f"{self.request_id}-{n}" for n in range(len(prepare))]
            self.requests = await asyncio.to_thread(
                lambda: [make(request_id) for make, request_id in zip(prepare, ids, strict=True)]
            )
            for made in self.requests:
                made.tenant = self.caller.name
            self._hold_logprobs()
            self.ticket.reserve_kv(sum(self._service.llm.most_kv_bytes(request) for request in self.requests))
            self._answers = await self._service.llm.submit(self.requests)
            if self._error is not None:  # shutting down, or too late, while it was being prepared
                raise self._error
        except BaseException as error:
            await self.end(error)
            raise

    @property
    def open(self) -> bool:
        """Whether more outputs will come."""
        return self._answers is not None and bool(self._answers.open)

    async def take(self) -> list[tuple[int, RequestOutput]]:
        """Wait for news: (index of the request, its newest output). Raises ApiError for a request that failed."""
        assert self._answers is not None
        found = []
        for output in await self._answers.take():
            self._last[output.request_id] = output
            if output.no_room:
                raise ApiError(400, str(output.error), code="context_length_exceeded")
            if output.error is not None:
                raise ApiError(500, output.error, code="engine_error")
            if any(answer.finish_reason is FinishReason.ABORT for answer in output.outputs):
                raise ApiError(503, "the request was aborted by the server", code="aborted", retry_after=1)
            found.append((self._index(output.request_id), output))
        return found

    async def finish(self) -> list[RequestOutput]:
        """The finished outputs, in the order of the requests."""
        done: dict[int, RequestOutput] = {}
        while self.open:
            done.update(await self.take())
        return [done[index] for index in range(len(self.requests))]

    def fail(self, error: Exception) -> None:
        """End it from outside: too late, or shutting down. Its reader gets the error."""
        self._error = error
        if self._answers is not None:
            self._answers.fail(error)

    async def end(self, error: BaseException | None = None) -> None:
        """Idempotent; the ticket goes back, the tokens are charged, listeners are told."""
        if self not in self._service.jobs:
            return
        self._service.jobs.discard(self)
        if self._answers is not None:
            await self._answers.aclose()
        outputs = tuple(self._last.values())
        self.ticket.spend(sum(output.usage.total_tokens for output in outputs))
        self.ticket.leave()
        self._service.buffers.give(self._held_bytes)
        self._service.job_ended(self, outputs, error)

    def _hold_logprobs(self) -> None:
        """Room for what a slow reader may leave lying. Raises ApiError."""
        num = sum(self._service.most_logprobs(request) for request in self.requests)
        if num:
            self._service.buffers.require(num * LOGPROB_BYTES, "logprobs of so many tokens", param="logprobs")
            self._held_bytes = num * LOGPROB_BYTES

    def _index(self, request_id: str) -> int:
        return 0 if len(self.requests) == 1 else int(request_id.rpartition("-")[2])
