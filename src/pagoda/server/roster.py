"""The models of one server. Here the server of one model, which has the budget to itself; `several` is of more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

from ..core.errors import RequestError
from ..engine.budgeting import Amount
from ..engine.config import EngineConfig
from .errors import ApiError
from .service import Service, State


class Place(StrEnum):
    """``loaded`` answers at once; ``unloaded`` holds neither weights nor KV."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


@dataclass(slots=True, eq=False)
class Entry:
    """One model: its name in requests, and what it is built from. ``service`` None: never loaded so far.

    ``yields``: takes no new requests, so that another model comes to its turn.
    """

    name: str
    config: EngineConfig
    pinned: bool = False
    service: Service | None = None
    place: Place = Place.UNLOADED
    used_at: float = 0.0
    yields: bool = False
    loading: asyncio.Task[None] | None = None
    num_loads: int = 0
    refusal: tuple[object, str] | None = None
    """Why it could not be loaded though all others had left, and in which circumstances."""

    @property
    def is_busy(self) -> bool:
        """Whether it has requests."""
        return self.service is not None and bool(self.service.jobs or self.service.streams)


class Roster:
    """Lives in one event loop. ``first`` answers requests that name no model, and stands for the server."""

    shares_budget = False
    """Whether there are several models."""

    def __init__(self, service: Service) -> None:
        self.first = service
        self.entries = [Entry(name, service.llm.config, service=service) for name in service.names]

    @property
    def services(self) -> list[Service]:
        """Of all models that were ever loaded, the first one's first."""
        return [self.first]

    def find(self, name: str | None) -> Entry:
        """The entry of that name, the first for None. Raises ApiError 404."""
        for entry in self.entries:
            if name is None or entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in self.entries)
        raise ApiError(404, f"no model {name!r} here; served: {names}", param="model", code="model_not_found")

    def here(self, name: str | None, *, awake: bool = True) -> Service | None:
        """The service of a model, None where it has to be brought first. It stays until the caller awaits something:
        its job has begun by then. ``awake`` False: its tokenizer is enough.

        Raises ApiError: 404 for an unknown name, 503 while the server ends.
        """
        self.find(name)
        return self.first

    async def bring(self, name: str | None, since: float) -> None:
        """Waits for a model that is not here, for a part of the time that a request has from ``since`` on.

        Raises ApiError: 400 where it can never fit, 429 and 503 where it cannot come now.
        """
        raise AssertionError("the only model is always here")

    def place_of(self, entry: Entry) -> Place:
        """Where it is now."""
        return Place.UNLOADED if self.first.llm.is_asleep else Place.LOADED

    async def load(self, entry: Entry) -> None:
        """Brings it into memory. Raises AsleepError; of several as ``served``."""
        await self.first.llm.wake()

    async def unload(self, entry: Entry) -> int:
        """Gives its weights and KV back; returns the bytes. Raises RequestError while it has requests."""
        return await self.first.sleeper.sleep()

    async def pin(self, entry: Entry, pinned: bool) -> None:
        """Whether it stays when others need room. Raises RequestError where there are no others."""
        raise RequestError("this server has one model, which stays; pins are for several")

    async def set_budget(self, budgets: dict[str, Amount]) -> None:
        """Other budgets for the whole server, by the names of ``LLM.set_budget``.

        Raises BudgetError or ConfigError, and nothing has changed.
        """
        await self.first.llm.set_budget(**budgets)  # type: ignore[arg-type]

    def start(self) -> None:
        """In the event loop that will serve."""
        self.first.start()

    async def prepare(self) -> None:
        """What has to be there before the server is ready."""

    async def drain(self) -> None:
        """As ``Service.drain``, for all."""
        for service in self.services:
            if service.state is State.READY:
                service.state = State.DRAINING
        await asyncio.gather(*(service.drain() for service in self.services))

    def stop(self) -> None:
        """The loop ends."""
        for service in self.services:
            service.stop()

    async def close(self) -> None:
        """Every engine gives every byte back."""
        for service in self.services:
            await service.llm.close()
