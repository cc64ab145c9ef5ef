"""One server a test process, on ``lantern``, in a thread of its own with a real socket; clients speak HTTP to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from pagoda.engine.async_llm import AsyncLLM
from pagoda.server.app import create_app
from pagoda.server.config import ServerConfig
from pagoda.server.keys import Keys
from pagoda.server.protocol import protocol_of
from pagoda.server.roster import Roster
from pagoda.server.service import Service

OPTIONS = {"memory": "3GiB", "kv_memory": "64MiB", "num_threads": 1, "max_num_seqs": 16}


class Running:
    """A server under test: ``url``, ``http`` (an httpx client), ``call`` to run code in its event loop."""

    def __init__(self, url: str, service: Service, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self.url, self.service, self._loop, self.connections = url, service, loop, connections
        self.http = httpx.Client(base_url=url, timeout=60)
        self.roster: Roster

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def stats(self) -> dict[str, Any]:
        return self.call(self.service.llm.stats())


@contextmanager
def running(
    llm: AsyncLLM | None, config: ServerConfig | None = None, keys: Keys | None = None,
    make: Callable[[ServerConfig], Roster] | None = None,
) -> Iterator[Running]:  # fmt: skip
    """Serves in a thread until the block ends; the engine stays open. ``make``: a roster of several models."""
    import uvicorn
    import uvloop

    from pagoda.server.listen import bind

    config = config or ServerConfig(port=0)
    sock = bind(config)
    ready, made = threading.Event(), {}

    async def serve() -> None:
        roster = Roster(Service(llm, config, keys)) if make is None else make(config)
        service = roster.first
        server = uvicorn.Server(
            uvicorn.Config(create_app(roster), http=protocol_of(service.buffers), log_config=None, lifespan="off")
        )
        roster.start()
        made.update(roster=roster, service=service, server=server, loop=asyncio.get_running_loop())
        task = asyncio.create_task(server._serve([sock]))
        while not server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await task
        roster.stop()

    thread = threading.Thread(target=lambda: uvloop.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    server = Running(
        f"http://127.0.0.1:{sock.getsockname()[1]}",
        made["service"],
        made["loop"],
        made["server"].server_state.connections,
    )
    server.roster = made["roster"]
    try:
        yield server
    finally:
        server.http.close()
        made["server"].should_exit = True
        thread.join(30)
        sock.close()


@pytest.fixture(scope="session")
def lantern() -> Iterator[AsyncLLM]:
    """The engine that all servers of this process share."""
    llm = AsyncLLM("lantern", **OPTIONS)
    yield llm
    asyncio.run(llm.close())


@pytest.fixture(scope="session")
def server(lantern: AsyncLLM) -> Iterator[Running]:
    """A server without keys and with room for everybody."""
    with running(lantern) as made:
        yield made


@pytest.fixture
def serve(lantern: AsyncLLM) -> Iterator[Callable[..., Running]]:
    """``serve(keys=…, max_waiting=…)``: another server over the same engine, for one test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(keys: Keys | None = None, **options: Any) -> Running:
            return stack.enter_context(running(lantern, ServerConfig(port=0, **options), keys))

        yield make
