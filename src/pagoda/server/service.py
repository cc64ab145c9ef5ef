"""What the routes share: the engine, the gate, open jobs, and the state of the server from ready to gone."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from enum import StrEnum
from typing import Any

from ..core.errors import EngineClosedError, PagodaError
from ..core.events import EventBus
from ..engine.async_llm import AsyncLLM, Pin
from ..engine.outputs import RequestOutput
from ..engine.request import Request
from .buffers import Buffers
from .config import ServerConfig
from .conversation import template_texts
from .errors import ApiError, bad, translated
from .gate import Gate
from .jobs import Job, RequestEnded
from .keys import Caller, Keys
from .metrics import Metrics
from .parsers.pipeline import choose_reasoning_parser, choose_tool_parser
from .pins import Pins, check_pinnable
from .schemas.common import CacheControl
from .sleeping import Sleeper
from .stored import ResponseStore, Stored

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.25


class State(StrEnum):
    """``ready`` answers requests; ``draining`` finishes those it has; ``dead`` lost its engine."""

    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Service:
    """One model being served. Lives in one event loop.

    ``sibling``: another model of the same server; they share the limits of keys and queue, and what requests may hold.
    """

    def __init__(
        self, llm: AsyncLLM, config: ServerConfig, keys: Keys | None = None, *, sibling: Service | None = None
    ) -> None:
        self.llm, self.config, self.keys = llm, config, keys or Keys()
        self.names = config.names or (llm.config.model,)
        self.created = int(time.time())
        self.events = EventBus()
        self.jobs: set[Job] = set()
        self.streams: set[Any] = set()
        self.state = State.READY
        capacity = llm.config.max_num_seqs + config.max_waiting
        self.gate = Gate(config, capacity, self.now) if sibling is None else sibling.gate
        self.buffers = Buffers(llm, config.memory_bytes) if sibling is None else sibling.buffers
        self.pins = Pins(llm, config)
        self.responses = ResponseStore(config, self.now, self.buffers, self._forget)
        self._errands: set[asyncio.Task[None]] = set()
        self.died = asyncio.Event() if sibling is None else sibling.died
        self.metrics = Metrics(self)
        self.sleeper = Sleeper(self)
        self.template_text = "\n".join(template_texts(llm)) or None
        choose_tool_parser(config.tool_call_parser, self.template_text)  # a wrong name is an error at the start
        choose_reasoning_parser(config.reasoning_parser, self.template_text)
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """In the event loop that will serve: watch deadlines and the engine's life."""
        loop = asyncio.get_running_loop()
        self._ticker = loop.create_task(self._tick())

        def told(reason: str) -> None:
            try:
                loop.call_soon_threadsafe(self._mourn, reason)
            except RuntimeError:
                _log.info("the engine ended after the server did")

        self.llm.when_dead(told)

    def stop(self) -> None:
        """The loop ends: nothing is watched any more."""
        if self._ticker is not None:
            self._ticker.cancel()
        self.buffers.close()  # of siblings the same; closing again does no harm

    # -- requests ----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds on the engine's clock."""
        return time.perf_counter()

    def job(self, request_id: str, endpoint: str, caller: Caller, num_requests: int = 1, **labels: Any) -> Job:
        """A request that comes in; ``labels`` go into its log record.

        Raises ApiError where it may not: not ready, queue or key limits.
        """
        self.check_ready()
        return Job(self, request_id, endpoint, caller, num_requests, labels)

    def check_ready(self) -> None:
        """Raises ApiError 503 while the server drains or has lost its engine."""
        if self.state is State.DRAINING:
            raise ApiError(503, "the server is shutting down; ask another", code="draining", retry_after=5)
        if self.state is State.DEAD or self.llm.dead is not None:
            raise ApiError(503, f"the engine is gone ({self.llm.dead})", code="engine_closed", retry_after=10)

    def check_model(self, name: str | None) -> str:
        """The name that the answer shows. Raises ApiError 404 for a model that is not served here."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ApiError(
                404, f"no model {name!r} here; served: {', '.join(self.names)}", param="model", code="model_not_found"
            )
        return name

    def check_priority(self, priority: int | None) -> None:
        """Raises ApiError where a priority would have no effect."""
        if priority and not self.llm.uses_priority:
            raise bad("priority", "priority: this server takes requests as they come (--scheduling); leave it out")

    def salt(self, caller: Caller, cache_salt: str | None) -> str:
        """Namespace of the prefix cache: keys do not find each other's prefixes, unless that is wanted."""
        tenant = "" if self.config.share_prefix_cache or not self.keys.required else caller.name
        return f"{tenant}\x1f{cache_salt or ''}" if tenant or cache_salt else ""

    async def pin(self, caller: Caller, output: RequestOutput, salt: str, ttl: float | None) -> Pin | None:
        """Keep prompt and first answer of a finished request in the cache, as the limits allow."""
        tokens = output.prompt_token_ids + output.outputs[0].token_ids
        return await self.pins.hold(caller.name, tokens, salt, ttl or self.config.response_ttl, self.now())

    async def pin_all(
        self, caller: Caller, outputs: list[RequestOutput], control: CacheControl | None, cache_salt: str | None
    ) -> int:
        """``pin`` for every output of a request that asked for it; returns the bytes that are held now."""
        assert control is not None
        salt = self.salt(caller, cache_salt)
        made = [await self.pin(caller, output, salt, control.ttl) for output in outputs]
        return sum(pin.num_bytes for pin in made if pin is not None)

    def _forget(self, stored: Stored) -> None:
        """A stored response leaves; its pin goes with it."""
        if stored.pin is not None:
            errand = asyncio.get_running_loop().create_task(self.pins.drop(stored.pin))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    def check_cache_control(self, control: CacheControl | None, kv: str | None) -> bool:
        """Whether a pin is asked for. Raises ApiError where it could have no effect."""
        if control is None or not control.pin:
            return False
        check_pinnable(self.llm, kv)
        return True

    def most_logprobs(self, request: Request) -> int:
        """Alternatives that its reports may come to list."""
        params, num_prompt = request.params, len(request.prompt_ids)
        room = self.llm.max_model_len - num_prompt
        answer = room if params.max_tokens is None else min(room, params.max_tokens)
        num = 0 if params.logprobs is None else answer * params.num_sequences * (params.logprobs + 1)
        return num + (0 if params.prompt_logprobs is None else num_prompt * (params.prompt_logprobs + 1))

    def job_ended(self, job: Job, outputs: tuple[RequestOutput, ...], error: BaseException | None) -> None:
        """Tells listeners."""
        if self.events.wants(RequestEnded):
            self.events.publish(
                RequestEnded(
                    job.request_id,
                    job.endpoint,
                    job.caller.name,
                    outputs,
                    status_of(error),
                    job.arrival,
                    self.now(),
                    job.labels,
                )
            )

    # -- the end -----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take no new requests, let open ones finish for ``drain_timeout`` seconds, then end them with an error."""
        if self.state is State.READY:
            self.state = State.DRAINING
        end = self.now() + self.config.drain_timeout
        while self.jobs and self.now() < end:
            await asyncio.sleep(0.02)
        if self.jobs:
            _log.warning("%d requests did not end within %g s; they get an error", len(self.jobs),
                         self.config.drain_timeout)  # fmt: skip
        for job in list(self.jobs):
            job.fail(ApiError(503, "the server shut down before the answer ended", code="shutting_down", retry_after=5))
        while self.jobs and self.now() < end + 2.0:
            await asyncio.sleep(0.02)

    def _mourn(self, reason: str) -> None:
        if self.state is State.READY or reason != "the engine was closed":
            self.state = State.DEAD
        for job in list(self.jobs):
            job.fail(EngineClosedError(reason))
        self.died.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self.now()
            for job in list(self.jobs):
                if now > job.deadline:
                    seconds = self.config.request_timeout
                    job.fail(ApiError(504, f"no complete answer within {seconds:g} s", code="timeout"))
            for stream in list(self.streams):
                stream.check(now, self.config.send_timeout)
            self.sleeper.tick(now)


def new_id(prefix: str) -> str:
    """``chatcmpl-…``: unguessable, since responses can be asked for by id."""
    return f"{prefix}-{uuid.uuid4().hex}"


def status_of(error: BaseException | None) -> int:
    """499 (as nginx has it) for a client that left."""
    if error is None:
        return 200
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, PagodaError):
        return translated(error).status
    return 499 if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else 500
