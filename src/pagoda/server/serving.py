"""A service behind a socket: uvicorn on uvloop, signals, draining, and the exit code.

=====  =========================================================================
code   why the server ended
=====  =========================================================================
0      SIGTERM or SIGINT; open requests had their answer, or an error, before
1      the engine died; every open request had an error before
143    a second signal: at once (128 + the signal's number)
=====  =========================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
import uvloop

from ..engine.async_llm import AsyncLLM, FallsAsleep, Woke
from .app import create_app
from .config import ServerConfig
from .keys import Keys
from .logs import log_requests
from .protocol import protocol_of
from .roster import Roster
from .service import Service, State
from .several import Several, SeveralModels
from .traces import trace_requests

_log = logging.getLogger(__name__)
_LINGER_SECONDS = 2


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    llm: AsyncLLM,
    config: ServerConfig,
    keys: Keys,
    sock: socket.socket,
    *,
    on_ready: Callable[[], None],
    tracing: Any = None,
    several: Several | None = None,
) -> int:
    """``serve`` on a fresh uvloop; returns the exit code. ``tracing``: a tracer provider (`traces.tracer_provider`);
    ``several``: other models beside the one of ``llm``.
    """
    logging.raiseExceptions = False  # a full disk under the log ends no request
    _freeze()
    try:
        return uvloop.run(serve(llm, config, keys, sock, on_ready=on_ready, tracing=tracing, several=several))
    finally:
        gc.unfreeze()  # or what is frozen outlives the interpreter, and its extensions complain of leaks
        if tracing is not None:
            tracing.shutdown()


def _freeze() -> None:
    """A full collection over the 200,000 objects of a loaded engine holds up a step for 0.2 s."""
    gc.collect()
    gc.freeze()


def _woke(event: Woke) -> None:
    _log.info("awake after %.2f s", event.seconds)
    _freeze()


async def serve(
    llm: AsyncLLM,
    config: ServerConfig,
    keys: Keys,
    sock: socket.socket,
    *,
    on_ready: Callable[[], None],
    tracing: Any = None,
    several: Several | None = None,
) -> int:
    """Serves until a signal or an engine's death, then closes the engines; returns the exit code."""

    def welcome(service: Service) -> None:
        service.llm.events.subscribe(FallsAsleep, lambda _: gc.unfreeze())  # or what is given back would stay
        service.llm.events.subscribe(Woke, _woke)
        log_requests(service, with_prompts=config.log_prompts)
        if tracing is not None:
            trace_requests(service, tracing)

    roster = _roster(llm, config, keys, several, welcome)
    service = roster.first
    server = _Server(
        uvicorn.Config(
            create_app(roster), http=protocol_of(service.buffers), log_config=None, access_log=False, lifespan="off",
            server_header=False, timeout_graceful_shutdown=_LINGER_SECONDS, timeout_keep_alive=30,
        )
    )  # fmt: skip
    roster.start()
    stop = _signals()
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started and not running.done():
            await asyncio.sleep(0.005)
        await roster.prepare()
        on_ready()
        await _first(running, stop.wait(), service.died.wait())
        await roster.drain()
    finally:
        server.should_exit = True
        await running
        roster.stop()
        dead = any(one.state is State.DEAD for one in roster.services)
        await roster.close()
    return 1 if dead else 0


def _roster(
    llm: AsyncLLM, config: ServerConfig, keys: Keys, several: Several | None, welcome: Callable[[Service], None]
) -> Roster:
    if several is None:
        roster = Roster(Service(llm, config, keys))
        welcome(roster.first)
        return roster
    return SeveralModels(several.entries, several.ground, llm, several.options, config, keys, welcome)


def _signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        _log.warning("%s: no new requests; open ones may end", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


async def _first(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks[1:]:
        task.cancel()
