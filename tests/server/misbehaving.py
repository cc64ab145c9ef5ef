"""Requests that take long, clients over plain sockets, and what must hold once they are gone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from .conftest import Running

LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True}
SHORT = LONG | {"max_tokens": 4, "stream": False}


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits; fails when it does not come true in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def idle(server: Running) -> bool:
    stats = server.stats()
    return stats["queue"]["running"] == stats["queue"]["waiting"] == stats["kv"]["num_sequences"] == 0


def all_is_freed(server: Running) -> None:
    until(lambda: idle(server))
    server.call(server.service.llm.audit())
    assert not server.service.jobs
    assert not server.service.streams
    assert server.service.gate.inside == 0


def raw_stream(server: Running, body: dict[str, Any]) -> socket.socket:
    """A streaming request over a plain socket, its first bytes read."""
    data = json.dumps(body).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    assert b"200 OK" in sock.recv(200)
    return sock
