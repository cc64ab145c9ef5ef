"""``AsyncLLM``: the engine on a thread of its own, requests from asyncio."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ..core.errors import EngineClosedError, PagodaError, RequestError
from ..sampling.params import SamplingParams
from .build import build
from .config import EngineConfig
from .intake import Intake
from .llm import checked_options
from .mailbox import Mailbox, deliver
from .outputs import RequestOutput
from .request import Prompt, Request

_log = logging.getLogger(__name__)
Command = Callable[[], None]


class AsyncLLM:
    """As ``LLM`` (same options), for many requests at once from asyncio.

    >>> async def story(llm):
    ...     async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=16)):
    ...         print(output.delta, end="")

    One thread owns the engine. What callers say reaches it through a queue that is emptied between two steps, so an
    abort or a new request waits for at most one step.
    """

    def __init__(self, model: str, *, progress: Callable[[int, int], None] | None = None, **options: Any) -> None:
        self._built = build(EngineConfig(model, progress=progress, **checked_options(options)))
        self._intake = Intake(self._built)
        self._ids = itertools.count(1)
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._mail: dict[str, Mailbox] = {}
        self._dead: str | None = None
        self._door = threading.Lock()  # nothing is put into the inbox once ``_dead`` is set
        self._thread = threading.Thread(target=self._serve, name="pagoda-engine", daemon=True)
        self._thread.start()

    # -- requests ----------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        salt: str = "",
        priority: int | None = None,
        stream: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs as they grow (``stream=False``: only the last). A slow reader gets several deltas joined in one.

        ``salt`` separates prefix-cache tenants. Leaving the loop, or cancelling the task, aborts the request.
        Raises RequestError or ConfigError before anything is queued; EngineClosedError if the engine went away.
        """
        request_id = request_id or f"request-{next(self._ids)}"
        request = await asyncio.to_thread(
            self._intake.request, request_id, prompt, params, stream=stream, salt=salt, priority=priority
        )
        mailbox = Mailbox(asyncio.get_running_loop())
        await self._call(lambda: self._add(request, mailbox))
        finished = False
        try:
            while not finished:
                output = await mailbox.take()
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._post(lambda: self._abort(request_id))

    async def generate_one(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> RequestOutput:
        """The finished output alone. Options as for ``generate``."""
        async for output in self.generate(prompt, params, stream=False, **options):
            last = output
        return last

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        """As ``generate``, for a conversation through the model's chat template."""
        async for output in self.generate(self._intake.render_chat(messages), params, **options):
            yield output

    async def abort(self, request_id: str) -> None:
        """End a request; its reader gets an output with finish reason ``abort``. Unknown ids are no error."""
        await self._call(lambda: self._abort(request_id))

    # -- what people look at -----------------------------------------------------------------------------------------

    async def stats(self) -> dict[str, Any]:
        """As ``LLM.stats``, taken between two steps."""
        return await self._call(self._built.stats)

    async def audit(self) -> None:
        """Recount every page reference between two steps. Raises AssertionError naming the page that is wrong."""
        await self._call(self._built.audit)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._built.loaded.tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens."""
        return self._built.engine.max_model_len

    async def close(self) -> None:
        """End what runs with an error that says so, and give every byte back."""
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)
        self._built.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- the caller's side of the queue ------------------------------------------------------------------------------

    def _post(self, command: Command) -> bool:
        with self._door:
            if self._dead is None:
                self._inbox.put(command)
            return self._dead is None

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on the engine's thread between two steps and bring its answer or error back."""
        future: Future[Any] = Future()

        def command() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except (PagodaError, AssertionError) as error:
                    future.set_exception(error)

        if not self._post(command):
            raise EngineClosedError(self._dead)
        return await asyncio.wrap_future(future)

    # -- the engine's side -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        engine, reason = self._built.engine, "the engine was closed"
        try:
            while self._obey(block=not engine.has_work):
                if engine.has_work:
                    deliver([(self._mail.get(o.request_id), o) for o in engine.step()])
                    self._forget_finished()
        except BaseException as error:
            _log.exception("the engine's thread died")
            reason = f"the engine died: {type(error).__name__}: {error}"
        with self._door:
            self._dead = reason
        for mailbox in self._mail.values():
            mailbox.fail(EngineClosedError(reason))
        self._obey(block=False)

    def _obey(self, *, block: bool) -> bool:
        """Do what was asked since the last step; False when it is time to close."""
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            block = False

    def _add(self, request: Request, mailbox: Mailbox) -> None:
        if self._dead is not None:
            raise EngineClosedError(self._dead)
        if request.request_id in self._mail:
            raise RequestError(f"request id {request.request_id!r} is already running; choose another")
        self._built.engine.add(request)
        self._mail[request.request_id] = mailbox

    def _abort(self, request_id: str) -> None:
        output = self._built.engine.abort(request_id)
        mailbox = self._mail.pop(request_id, None)
        if output is not None:
            deliver([(mailbox, output)])

    def _forget_finished(self) -> None:
        for request_id in [request_id for request_id, mailbox in self._mail.items() if mailbox.finished]:
            del self._mail[request_id]
