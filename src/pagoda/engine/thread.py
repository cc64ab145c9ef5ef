"""The thread that owns an engine: it steps, and does what others ask for between two steps."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..core.errors import EngineClosedError

if TYPE_CHECKING:
    from .engine import Engine
    from .outputs import RequestOutput

_log = logging.getLogger(__name__)
IDLE_SECONDS = 0.004  # between two lots of KV that go to disk while nobody asks for anything
GIVE_WAY_SECONDS = 2.0  # a long step of a large model
Command = Callable[[], None]


class EngineThread:
    """``engine`` says which one, for it may be another after a sleep; ``send`` gets the outputs of each step.

    Runs from ``start`` until ``close``, or until a step raises: then it is dead, and says why.
    """

    def __init__(self, engine: Callable[[], Engine], send: Callable[[list[RequestOutput]], None]) -> None:
        self._engine, self._send = engine, send
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._dead: str | None = None
        self._mourners: list[Callable[[str], None]] = []
        self._door = threading.Lock()  # nothing is put into the inbox once ``_dead`` is set
        self._thread = threading.Thread(target=self._serve, name="pagoda-engine", daemon=True)

    def start(self) -> None:
        """Once, before anything is asked for."""
        self._thread.start()

    @property
    def dead(self) -> str | None:
        """Why it does not run any more; None while it does."""
        return self._dead

    def when_dead(self, told: Callable[[str], None]) -> None:
        """``told(reason)`` is called in the thread at its end, in the order of asking; at once if it has ended."""
        with self._door:
            if self._dead is None:
                self._mourners.append(told)
                return
        told(self._dead)

    async def close(self) -> None:
        """End after the step under way."""
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    # -- the caller's side of the queue ------------------------------------------------------------------------------

    def post(self, command: Command) -> bool:
        """``command`` runs between two steps, and nobody waits for it; False if the thread has ended."""
        with self._door:
            if self._dead is None:
                self._inbox.put(command)
            return self._dead is None

    def ask(self, function: Callable[[], Any]) -> Future[Any]:
        """What ``function`` returns or raises between two steps. Raises EngineClosedError."""
        future: Future[Any] = Future()

        def command() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:  # whatever it is, it is this caller's and not the loop's
                    future.set_exception(error)

        if not self.post(command):
            raise EngineClosedError(self._dead)
        return future

    async def call(self, function: Callable[[], Any]) -> Any:
        """As ``ask``, awaited."""
        return await asyncio.wrap_future(self.ask(function))

    def give_way(self, work: Callable[[], int]) -> int:
        """``work()`` between two steps; 0 if the thread has not come to it within ``GIVE_WAY_SECONDS``: who asks,
        perhaps another engine's thread, does better without. In the thread itself: at once.
        """
        if threading.current_thread() is self._thread:
            return work()
        future: Future[int] = Future()

        def command() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(work())

        if not self.post(command):
            return 0
        try:
            return future.result(GIVE_WAY_SECONDS)
        except TimeoutError:
            return 0 if future.cancel() else future.result()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        reason = "the engine was closed"
        try:
            while self._obey(block=not self._engine().has_work):
                if self._engine().has_work:
                    self._send(self._engine().step())
        except BaseException as error:
            _log.exception("the engine's thread died")
            reason = f"the engine died: {type(error).__name__}: {error}"
        with self._door:
            self._dead = reason
        self._answer_the_rest()
        for told in self._mourners:
            told(reason)

    def _obey(self, *, block: bool) -> bool:
        """Do what was asked since the last step; False when it is time to close."""
        while True:
            idle = IDLE_SECONDS if block and self._engine().has_unwritten else None
            try:
                command = self._inbox.get(block=block, timeout=idle)
            except queue.Empty:
                if idle is not None:
                    self._engine().write_back()
                return True
            if command is None:
                return False
            command()
            block = False

    def _answer_the_rest(self) -> None:
        """The engine is gone: who asked meanwhile is told so."""
        while True:
            try:
                command = self._inbox.get(block=False)
            except queue.Empty:
                return
            if command is not None:
                command()
