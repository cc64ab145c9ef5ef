"""``AsyncLLM``: the engine on a thread of its own, requests from asyncio."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import AsleepError, EngineClosedError, PagodaError, RequestError
from ..sampling.params import SamplingParams
from .budgeting import Amount, keep_size, refit, resize_weights, set_budgets
from .build import build, rebuild
from .config import EngineConfig
from .intake import Intake
from .llm import checked_options, named
from .mailbox import Answers, Mailbox, deliver
from .outputs import RequestOutput
from .request import Prompt, Request
from .thread import EngineThread

if TYPE_CHECKING:
    from ..budget.ledger import Lease
    from ..core.events import EventBus
    from ..core.types import KVFormat
    from ..models.chat import ChatTemplate
    from ..models.load import Loaded
    from ..models.tokenizer import Tokenizer
    from .ground import Ground


@dataclass(frozen=True, slots=True)
class Pin:
    """A prefix that stays. ``num_bytes``: its KV, with what it shares with other pins."""

    handle: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class FallsAsleep:
    """Published on ``AsyncLLM.events``, in the engine's thread, before pages and weights are given back."""


@dataclass(frozen=True, slots=True)
class Woke:
    """Published on ``AsyncLLM.events``, in the engine's thread; ``seconds`` until the engine was there again."""

    seconds: float


class AsyncLLM:
    """As ``LLM`` (same options), for many requests at once from asyncio.

    >>> async def story(llm):
    ...     async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=16)):
    ...         print(output.delta, end="")

    One thread owns the engine. What callers say reaches it through a queue that is emptied between two steps, so an
    abort or a new request waits for at most one step.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None,
        ground: Ground | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """``ground``: a budget that other engines of this process use too (`Ground.of` with ``is_shared``)."""
        self._built = build(EngineConfig(named(model), progress=progress, **checked_options(options)), ground=ground)
        self._intake = Intake(self._built)
        self._ids = itertools.count(1)
        self._mail: dict[str, Mailbox] = {}
        self._sleeps = False
        self._thread = EngineThread(lambda: self._built.engine, self._send)
        self._thread.when_dead(self._fail_all)
        self._built.between_steps = self._thread.give_way
        self._thread.start()

    # -- requests ----------------------------------------------------------------------------------------------------

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        salt: str = "",
        priority: int | None = None,
        stream: bool = False,
        pooling: str | None = None,
    ) -> Request:
        """A checked and tokenized request for ``submit``. Blocks while it tokenizes; any thread may call it.

        ``pooling``: ``mean`` or ``last`` for an embedding of the prompt instead of an answer.

        Raises RequestError or ConfigError, or AsleepError where weights that were given back do not come; nothing is
        queued yet.
        """
        if self._sleeps:
            self._thread.ask(self._wake).result()
        request_id = request_id or f"request-{next(self._ids)}"
        return self._intake.request(
            request_id, prompt, params, stream=stream, salt=salt, priority=priority, pooling=pooling
        )

    async def submit(self, requests: Sequence[Request]) -> Answers:
        """Queue these requests, all or none of them, and return where their outputs come.

        Raises RequestError saying which can never run here, EngineClosedError if the engine went away.
        """
        mailbox = Mailbox(asyncio.get_running_loop())
        answers = Answers(self.drop, [request.request_id for request in requests], mailbox)
        try:
            await self._thread.call(lambda: self._add_all(requests, mailbox))
        except asyncio.CancelledError:  # the caller left while the engine was busy with a step
            await answers.aclose()
            raise
        return answers

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
        options = {"request_id": request_id, "salt": salt, "priority": priority, "stream": stream}
        request = await asyncio.to_thread(self.prepare, prompt, params, **options)  # type: ignore[arg-type]
        answers = await self.submit([request])
        try:
            while answers.open:
                for output in await answers.take():
                    yield output
        finally:
            await answers.aclose()

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
        await self._thread.call(lambda: self._abort(request_id))

    def drop(self, request_ids: Iterable[str], mailbox: Mailbox) -> None:
        """Abort requests that are read through this mailbox; returns at once, the pages are free before the next step.

        Nobody is told: their reader has gone.
        """
        self._thread.post(partial(self._drop, list(request_ids), mailbox))

    # -- prefixes that stay ------------------------------------------------------------------------------------------

    async def pin(self, tokens: Sequence[int], *, salt: str = "", ttl: float | None = None) -> Pin | None:
        """Keep the cached KV at the start of these tokens until ``unpin``, or for ``ttl`` seconds.

        In a ``kv_dir`` it stays before other pages for ``ttl`` seconds, whatever is unpinned here. None when nothing of
        it is cached.
        """
        return await self._thread.call(lambda: self._pin(tokens, salt, ttl))

    async def unpin(self, pin: Pin) -> None:
        """End a pin; its pages go when they are needed. A pin whose time is over is no error."""
        await self._thread.call(lambda: self._built.engine.manager.unpin(pin.handle))

    def _pin(self, tokens: Sequence[int], salt: str, ttl: float | None) -> Pin | None:
        manager = self._built.engine.manager
        handle = None if self._sleeps else manager.pin(tokens, salt=salt, ttl=ttl)
        if handle is None:
            return None
        if (kept := self._built.engine.persistence) is not None:
            kept.pin(tokens, salt=salt, seconds=ttl)
        return Pin(handle, manager.pinned_pages(handle) * manager.fmt.block_bytes)

    # -- sleep -------------------------------------------------------------------------------------------------------

    async def sleep(self) -> int:
        """Give weights and KV back until somebody asks for an answer; returns the bytes that left the ledger.

        Kept prefixes and pins are gone, unless a ``kv_dir`` has them; tokenizer and budget stay. Asleep already: 0.
        Raises RequestError while requests run.
        """
        return await self._thread.call(self._fall_asleep)  # type: ignore[no-any-return]

    async def wake(self) -> None:
        """Load the weights again now, and not with the next request. Raises AsleepError; it sleeps on."""
        await self._thread.call(self._wake)

    @property
    def required_bytes(self) -> int:
        """What it leases as long as it is awake, whatever it does."""
        return self._built.required_bytes

    @property
    def tokenizer_bytes(self) -> int:
        """What it leases while it sleeps, too."""
        return self._built.loaded.footprint.leased_by("tokenizer")

    @property
    def is_asleep(self) -> bool:
        """Whether weights and KV were given back."""
        return self._sleeps

    def _fall_asleep(self) -> int:
        if self._sleeps:
            return 0
        if self._built.engine.has_work:
            raise RequestError("requests are running; sleep when they have ended")
        held = self._built.ledger.leased_bytes
        self.events.publish(FallsAsleep())
        self._built.sleep()
        self._sleeps = True
        return held - self._built.ledger.leased_bytes

    def _wake(self) -> None:
        if not self._sleeps:
            return
        started = time.perf_counter()
        try:
            asleep, self._built = self._built, rebuild(self._built)
        except PagodaError as error:
            raise AsleepError(f"the engine sleeps and cannot wake: {error}") from error
        self._intake = Intake(self._built)
        self._sleeps = False
        keep_size(asleep, self._built)
        self.events.publish(Woke(time.perf_counter() - started))

    def _awake(self, function: Callable[[], Any]) -> Any:
        self._wake()
        return function()

    # -- what people look at -----------------------------------------------------------------------------------------

    async def stats(self) -> dict[str, Any]:
        """As ``LLM.stats``, taken between two steps."""
        return await self._thread.call(lambda: self._built.stats() | {"asleep": self._sleeps})

    async def watched(self, *, with_picture: bool = False) -> dict[str, Any]:
        """``stats`` and what metrics and the web page show beside it, taken between two steps."""
        return await self._thread.call(
            lambda: self._built.watched(with_picture=with_picture) | {"asleep": self._sleeps}
        )

    async def audit(self) -> None:
        """Recount every page reference between two steps. Raises AssertionError naming the page that is wrong."""
        await self._thread.call(lambda: None if self._sleeps else self._built.audit())

    async def refit(self) -> None:
        """Between two steps: KV may take what the shared budget has for this engine now that it was changed."""
        await self._thread.call(lambda: None if self._sleeps else refit(self._built))

    async def set_budget(
        self,
        memory: Amount | None = None,
        *,
        host_memory: Amount | None = None,
        device_memory: Amount | None = None,
        disk: str | int | None = None,
    ) -> int:
        """As ``LLM.set_budget``, between two steps. Wakes for memory, and not for a disk."""

        def work() -> int:
            if (memory, host_memory, device_memory) != (None, None, None):
                self._wake()
            return set_budgets(self._built, memory, host_memory=host_memory, device_memory=device_memory, disk=disk)

        return await self._thread.call(work)  # type: ignore[no-any-return]

    async def resize_weights(self, num_bytes: str | int) -> int:
        """As ``LLM.resize_weights``, between two steps."""
        return await self._thread.call(partial(self._awake, lambda: resize_weights(self._built, num_bytes)))

    def lease(self, account: str, num_bytes: int, what: str, resident: Callable[[], int]) -> Lease | None:
        """Bytes of the budget that the caller holds (``reserve_bytes`` keeps them free); None if it is a device's.

        Raises BudgetError where they are not free.
        """
        return None if self._built.is_on_cuda else self._built.ledger.lease(account, num_bytes, what, resident)

    @property
    def loaded(self) -> Loaded:
        """The model and what its folder says: tokenizer, chat templates, shape."""
        return self._built.loaded

    @property
    def config(self) -> EngineConfig:
        """What the engine was built from."""
        return self._built.config

    @property
    def weights_placement(self) -> str:
        """Where the weights lie: ``resident``, or what is read from where."""
        return self._built.loaded.placement

    @property
    def uses_priority(self) -> bool:
        """Whether the scheduling policy looks at the priority of requests."""
        return self._built.engine.scheduler.policy.uses_priority

    @property
    def startup(self) -> dict[str, float]:
        """Seconds of building the engine, by phase."""
        return dict(self._built.startup)

    @property
    def events(self) -> EventBus:
        """What the engine publishes (``StepEnded``), in its own thread."""
        return self._built.engine.events

    @property
    def kv_format(self) -> KVFormat:
        """Bytes of a page and of a token's KV, in the engine's own format."""
        return self._built.sizes.fmt

    def most_kv_bytes(self, request: Request) -> int:
        """KV that a request may come to hold, as its policy keeps it: prompt and longest answers."""
        params, num_prompt = request.params, len(request.prompt_ids)
        answer = self.max_model_len - num_prompt
        answer = answer if params.max_tokens is None else min(answer, params.max_tokens)
        fmt, num = self._built.engine.stores.format_of(request.policy.codec), params.num_sequences
        shared = fmt.blocks_for(num_prompt + answer * num)
        policy = self._built.engine.admission.fit(request.policy)
        if policy.eviction is None and policy.reach is None:
            return shared * fmt.block_bytes
        step = self._built.config.max_num_batched_tokens
        each = fmt.blocks_for(policy.peak_slots(num_prompt + answer, num_prompt, step)) * num
        # What is evicted is no longer shared; what windows do not reach is given up by each for itself.
        return (each if policy.eviction is not None else min(shared, each)) * fmt.block_bytes

    @property
    def kv_capacity_bytes(self) -> int:
        """KV that the budget holds, in bytes."""
        return self._built.sizes.max_blocks * self._built.sizes.fmt.block_bytes

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template in use, compiled."""
        return self._intake.chat_template

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._built.loaded.tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens."""
        return self._built.engine.max_model_len

    @property
    def dead(self) -> str | None:
        """Why the engine does not run any more; None while it does."""
        return self._thread.dead

    def when_dead(self, told: Callable[[str], None]) -> None:
        """``told(reason)`` is called, in the engine's thread, once every open request has its error."""
        self._thread.when_dead(told)

    async def close(self) -> None:
        """End what runs with an error that says so, and give every byte back."""
        await self._thread.close()
        self._built.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- the engine's side -------------------------------------------------------------------------------------------

    def _fail_all(self, reason: str) -> None:
        for mailbox in self._mail.values():
            mailbox.fail(EngineClosedError(reason))

    def _add_all(self, requests: Sequence[Request], mailbox: Mailbox) -> None:
        added: list[str] = []
        try:
            for request in requests:
                self._add(request, mailbox)
                added.append(request.request_id)
        except BaseException:
            for request_id in added:
                self._abort(request_id)
            raise

    def _add(self, request: Request, mailbox: Mailbox) -> None:
        if self._thread.dead is not None:
            raise EngineClosedError(self._thread.dead)
        if request.request_id in self._mail:
            raise RequestError(f"request id {request.request_id!r} is already running; choose another")
        self._wake()
        self._built.engine.add(request)
        self._mail[request.request_id] = mailbox

    def _abort(self, request_id: str) -> None:
        output = self._built.engine.abort(request_id)
        if output is not None:
            self._send([output])

    def _drop(self, request_ids: Sequence[str], mailbox: Mailbox) -> None:
        for request_id in request_ids:
            if self._mail.get(request_id) is mailbox:
                del self._mail[request_id]
                self._built.engine.abort(request_id)

    def _send(self, outputs: list[RequestOutput]) -> None:
        deliver([(self._mail.get(output.request_id), output) for output in outputs])
        for output in outputs:
            if output.finished:
                self._mail.pop(output.request_id, None)
