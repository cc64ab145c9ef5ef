"""Several models in one server, and one budget for all of them: a model is loaded when somebody asks for it.

    asked for ─► here: answer
              └► else, one at a time: is there room? load ─► answer
                     └► no: unload the one idle for longest ─► look again
                     └► all others are busy: wait; after a while they take no new requests until this one had its turn

Each engine leases what it needs to answer its longest request, and takes more KV as it is free (`engine.ground`); spare
KV of one goes to another when that one has work. What was accepted is never disturbed: only a model without a request
leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..budget import Budget
from ..core.errors import AsleepError, BudgetError, ConfigError, ModelError, PagodaError, RequestError, choices
from ..core.units import format_bytes
from ..engine.async_llm import AsyncLLM
from ..engine.budgeting import Amount
from ..engine.config import EngineConfig
from ..engine.ground import Ground, stated_budget
from ..engine.needs import needed_bytes
from .config import ServerConfig
from .errors import ApiError
from .keys import Keys
from .roster import Entry, Place, Roster
from .service import Service

_log = logging.getLogger(__name__)
PATIENCE_SECONDS = 2.0
"""So long a model waits for others to have no request; then they take no new ones until it is loaded."""
LOOK_SECONDS = 0.05
TICK_SECONDS = 0.25
HEADROOM_BYTES = 32 << 20
"""Kept free by spare KV of idle models while others answer, so that their sequences find room to grow."""


@dataclass(frozen=True)
class Several:
    """The models of ``pagoda serve A B …`` and the ground that they share. ``options`` are every engine's."""

    entries: list[Entry]
    ground: Ground
    options: dict[str, Any]


def plan_several(
    models: Sequence[str], names: Sequence[str], pinned: Sequence[str], options: dict[str, Any]
) -> Several:
    """The ground measured, and each model found to fit the budget by itself, before anything is loaded.

    ``names``: what requests call the models, one each, or none: as they are given. Raises ConfigError, ModelError,
    BudgetError: one line.
    """
    if names and len(names) != len(models):
        raise ConfigError(
            f"{len(models)} models and {len(names)} served names; give one --served-model-name for each, or none"
        )
    called = list(names or models)
    for what, given in (("model", list(models)), ("name", called)):
        twice = next((one for one in given if given.count(one) > 1), None)
        if twice is not None:
            raise ConfigError(f"{what} {twice!r} is there twice; name every {what} once")
    for name in pinned:
        if name not in called:
            raise ConfigError(choices("--pin", name, called))
    if options.get("chat_template") is not None:
        raise ConfigError("--chat-template is one model's; leave it out where several are served")
    configs = [EngineConfig(model, **options) for model in models]
    ground = Ground.of(configs[0], is_shared=True)
    for config in configs:
        needed_bytes(config, ground)
    entries = [Entry(name, config, name in pinned) for name, config in zip(called, configs, strict=True)]
    return Several(entries, ground, options)


class SeveralModels(Roster):
    """``first`` is the engine of ``entries[0]``, on the ground that all share; ``options`` are those of every engine;
    ``welcome`` is told of each model's service when it is made.
    """

    shares_budget = True

    def __init__(
        self, entries: list[Entry], ground: Ground, first: AsyncLLM, options: dict[str, Any], config: ServerConfig,
        keys: Keys | None = None, welcome: Callable[[Service], None] = lambda _: None,
    ) -> None:  # fmt: skip
        service = Service(first, replace(config, names=(entries[0].name,), sleep_after=None), keys)
        super().__init__(service)
        self.entries, self._ground, self._options, self._config = entries, ground, dict(options), config
        self._stated = entries[0].config
        self._welcome, self._turn, self._num_waiting = welcome, asyncio.Lock(), 0
        self._relief: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        entries[0].service = service
        self._arrived(entries[0])
        welcome(service)

    @property
    def services(self) -> list[Service]:
        return [entry.service for entry in self.entries if entry.service is not None]

    def here(self, name: str | None, *, awake: bool = True) -> Service | None:
        entry = self.find(name)
        self.first.check_ready()
        if entry.service is None or (awake and (entry.place is not Place.LOADED or entry.yields)):
            return None
        entry.used_at = self.first.now()
        return entry.service

    async def bring(self, name: str | None, since: float) -> None:
        entry, most = self.find(name), self._config.request_timeout
        if self._num_waiting >= max(1, self._config.max_waiting):
            raise ApiError(429, "too many requests wait for models to be loaded; try again later", code="queue_full",
                           retry_after=2)  # fmt: skip
        if self.first.now() > since + most:
            raise ApiError(503, f"model {entry.name!r} found no room within {most:g} s: others are busy",
                           code="model_waits", retry_after=10)  # fmt: skip
        self._num_waiting += 1
        try:
            if entry.yields:  # another has its turn first
                await asyncio.sleep(LOOK_SECONDS)
                return
            if entry.loading is None:
                entry.loading = asyncio.get_running_loop().create_task(self._bring(entry))
                entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may ask
            loading = entry.loading
            await asyncio.wait((loading,), timeout=TICK_SECONDS)  # who asked may leave: it comes all the same
            if loading.done():
                loading.result()
        finally:
            self._num_waiting -= 1

    def place_of(self, entry: Entry) -> Place:
        return entry.place

    async def load(self, entry: Entry) -> None:
        since = self.first.now()
        while self.here(entry.name) is None:
            await self.bring(entry.name, since)

    async def unload(self, entry: Entry) -> int:
        if entry.place is Place.UNLOADED and entry.loading is None:
            return 0
        if entry.is_busy or entry.place is not Place.LOADED:
            raise RequestError(f"model {entry.name!r} has requests; unload it when they have ended")
        async with self._turn:
            return await self._leave(entry)

    async def pin(self, entry: Entry, pinned: bool) -> None:
        if pinned:
            await self.load(entry)
        entry.pinned = pinned
        self._note_staying(entry)

    async def set_budget(self, budgets: dict[str, Amount]) -> None:
        """Idle models leave where the budget became too small for all that are here; one in which a model could not
        even be alone is refused, as at the start.
        """
        if not budgets:
            raise ConfigError("no budget is named; say memory, host_memory or disk")
        before = Budget(self._ground.ledger.total_bytes, self._ground.ledger.reason)
        memory = {name: value for name, value in budgets.items() if name != "disk"}
        if memory:
            await self._set_memory(stated_budget(replace(self._stated, **memory), self._ground.probe))  # type: ignore[arg-type]
        try:
            async with self._turn:  # none is being built by the old options
                if (disk := budgets.get("disk")) is not None:
                    for service in self.services:  # each checks it; all have the same folder
                        await service.llm.set_budget(disk=disk)  # type: ignore[arg-type]
                self._options |= budgets
                self._stated = replace(self._stated, **budgets)  # type: ignore[arg-type]
        except ConfigError:
            if memory:
                await self._set_memory(before)
            raise

    async def _set_memory(self, budget: Budget) -> None:
        ledger = self._ground.ledger
        async with self._turn:
            for entry in self.entries:
                self._check_alone(entry, budget.total_bytes)
            while True:
                try:
                    await asyncio.to_thread(ledger.set_total, budget.total_bytes, reason=budget.reason)
                    break
                except BudgetError:
                    if (victim := self._idle_for_longest(None)) is None:
                        raise
                    await self._leave(victim)
        for service in self.services:
            await service.llm.refit()

    def _check_alone(self, entry: Entry, total_bytes: int) -> None:
        """Raises BudgetError where the model could not run in such a budget with all others unloaded."""
        pinned = [one for one in self.entries if one is not entry and one.pinned and one.place is Place.LOADED]
        leaving = sum(one.service.llm.required_bytes - one.service.llm.tokenizer_bytes for one in pinned if one.service)
        try:
            needed_bytes(entry.config, self._ground, total_bytes=total_bytes, leaving_bytes=leaving)
        except ModelError:
            return  # its files cannot be read now: who asks for it will be told

    # -- coming ------------------------------------------------------------------------------------------------------

    async def _bring(self, entry: Entry) -> None:
        """Raises ApiError, for all who wait for it."""
        try:
            async with self._turn:
                if entry.place is not Place.LOADED:
                    await self._load(entry)
        except (BudgetError, ConfigError) as error:
            code = "model_does_not_fit" if isinstance(error, BudgetError) else "model_refuses"
            raise ApiError(400, f"model {entry.name!r}: {error}", param="model", code=code) from error
        except (ModelError, AsleepError) as error:
            raise ApiError(
                503, f"model {entry.name!r} cannot be loaded: {error}", code="cannot_load", retry_after=10
            ) from error
        finally:
            entry.loading = None
            for other in self.entries:
                other.yields = False

    async def _load(self, entry: Entry) -> None:
        """Raises PagodaError; it is unloaded as before then."""
        circumstances = (self._ground.ledger.total_bytes, [other for other in self.entries if other.pinned])
        if entry.refusal is not None and entry.refusal[0] == circumstances:
            raise BudgetError(entry.refusal[1])  # nobody has to leave for it again
        needed, since = needed_bytes(entry.config, self._ground), self.first.now()
        while True:
            await self._make_room(entry, needed, since)
            entry.place = Place.LOADING
            try:
                await self._build(entry)
                break
            except BudgetError as error:
                if not any(self._could_leave(other, entry) for other in self.entries):
                    entry.refusal = circumstances, str(error)
                    raise
                _log.info("model %s found less room than was counted on: %s", entry.name, error)
                needed += HEADROOM_BYTES
            finally:
                entry.place = Place.UNLOADED
        self._arrived(entry)
        _log.info("model %s is loaded after %.2f s", entry.name, self.first.now() - since)

    async def _build(self, entry: Entry) -> None:
        """Wakes its engine, or makes it."""
        if entry.service is not None:
            try:
                await entry.service.llm.wake()
            except AsleepError as error:
                raise error.__cause__ if isinstance(error.__cause__, BudgetError) else error from None
            return
        llm = await asyncio.to_thread(AsyncLLM, entry.config.model, ground=self._ground, **self._options)
        config = replace(self._config, names=(entry.name,), sleep_after=None)
        entry.service = Service(llm, config, self.first.keys, sibling=self.first)
        entry.service.start()
        self._welcome(entry.service)

    def _arrived(self, entry: Entry) -> None:
        entry.place, entry.used_at = Place.LOADED, self.first.now()
        entry.num_loads += 1
        self._note_staying(entry)

    def _note_staying(self, entry: Entry) -> None:
        """What others cannot count on while this one is here, or only sleeps."""
        if entry.service is not None:
            llm, stays = entry.service.llm, entry.pinned and entry.place is Place.LOADED
            self._ground.staying[entry.config.model] = llm.required_bytes if stays else llm.tokenizer_bytes

    # -- making room -------------------------------------------------------------------------------------------------

    async def _make_room(self, entry: Entry, needed: int, since: float) -> None:
        """Until so many bytes are free. Raises BudgetError where that can never be."""
        ledger = self._ground.ledger
        while ledger.free_bytes < needed:
            await asyncio.to_thread(ledger.relieve, needed)
            if ledger.free_bytes >= needed:
                return
            if (victim := self._idle_for_longest(entry)) is not None:
                await self._leave(victim)
                continue
            others = [other for other in self.entries if self._could_leave(other, entry)]
            if not others:
                pinned = ", ".join(other.name for other in self.entries if other.pinned and other is not entry)
                raise BudgetError(
                    f"it needs {format_bytes(needed)} and the budget of {format_bytes(ledger.total_bytes)} leaves "
                    f"{format_bytes(ledger.free_bytes)}" + (f" beside {pinned}, which is pinned" if pinned else "")
                )
            if self.first.now() - since > PATIENCE_SECONDS:
                min(others, key=lambda other: other.used_at).yields = True
            await asyncio.sleep(LOOK_SECONDS)

    @staticmethod
    def _could_leave(other: Entry, entry: Entry | None) -> bool:
        return other is not entry and not other.pinned and other.place is Place.LOADED

    def _idle_for_longest(self, entry: Entry | None) -> Entry | None:
        idle = [other for other in self.entries if self._could_leave(other, entry) and not other.is_busy]
        return min(idle, key=lambda other: other.used_at, default=None)

    async def _leave(self, entry: Entry) -> int:
        """Its bytes go back; 0 where a request was quicker."""
        if entry.place is not Place.LOADED or entry.service is None:
            return 0
        entry.place, freed = Place.UNLOADING, 0
        try:
            freed = await entry.service.sleeper.sleep()
            entry.place = Place.UNLOADED
            self._note_staying(entry)
            _log.info("model %s is unloaded: %s went back", entry.name, format_bytes(freed))
        except RequestError:  # an aborted request is not quite gone yet
            await asyncio.sleep(LOOK_SECONDS)
        finally:
            if entry.place is Place.UNLOADING:
                entry.place = Place.LOADED
        return freed

    # -- the server's life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        super().start()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def prepare(self) -> None:
        """Pinned models are there before the server is ready. Raises BudgetError or ConfigError."""
        for entry in self.entries:
            if entry.pinned:
                try:
                    await self.load(entry)
                except ApiError as error:
                    cause = error.__cause__
                    raise (cause if isinstance(cause, PagodaError) else ConfigError(str(error))) from None
                self._note_staying(entry)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now, after = self.first.now(), self._config.sleep_after
            for entry in self.entries:
                if entry.is_busy:
                    entry.used_at = now
                elif (
                    after is not None and not entry.pinned and now - entry.used_at >= after and not self._turn.locked()
                ):
                    async with self._turn:
                        await self._leave(entry)
            self._relieve()

    def _relieve(self) -> None:
        """Spare KV of idle models goes where others have work and hardly anything is free."""
        ledger = self._ground.ledger
        working = any(service.jobs for service in self.services)
        if working and ledger.free_bytes < HEADROOM_BYTES and (self._relief is None or self._relief.done()):
            self._relief = asyncio.get_running_loop().create_task(asyncio.to_thread(ledger.relieve, HEADROOM_BYTES))

    def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        super().stop()

    async def close(self) -> None:
        await super().close()
        if self._ground.runtime is not None:
            self._ground.runtime.release()
