"""The driver's side of a worker: start, ask, give up in time."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoints import ROOT
from .machine import peak_rss_bytes
from .settings import Setting
from .trace import CLOCK
from .worker import Job

LAST_WORDS = 5.0  # seconds between a polite end and a kill


class EngineError(RuntimeError):
    """The engine failed or took too long; its worker is gone or may not be used again."""


class Unsupported(EngineError):
    """The engine said that it has no such thing; its worker goes on."""


class Client:
    """One worker process. Not thread-safe; one request at a time."""

    def __init__(self, name: str, python: str, log: Path, clock: str = "wall") -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self._log = name, log
        command = [python, "-m", "benchmarks.peers.worker", name]
        with log.open("ab") as errors:
            # Unbuffered: a request to a process that is gone fails where it is written, not again at close.
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                env=os.environ | {CLOCK: clock},
            )  # fmt: skip
        self._rest = b""
        self.info: dict[str, Any] = {}

    def load(self, job: Job, seconds: float) -> dict[str, Any]:
        """Raises EngineError or Unsupported."""
        self.info = self._ask({"do": "load", **asdict(job)}, seconds)
        return self.info

    def generate(self, setting: Setting, seed: int, seconds: float) -> dict[str, Any]:
        """The trace's summary. Raises EngineError or Unsupported."""
        shape = {"batch": setting.batch, "prompt": setting.prompt, "new": setting.new, "shared": setting.shared}
        return self._ask({"do": "generate", "seed": seed, **shape}, seconds)

    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes(self._process.pid)

    def close(self) -> None:
        if self._process.poll() is None:
            try:
                self._send({"do": "quit"})
                self._process.wait(LAST_WORDS)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            self._send(request)
            reply = json.loads(self._line(seconds))
        except (BrokenPipeError, EOFError) as error:
            raise EngineError(f"{self.name} ended with {self._process.wait()}; see {self._log}") from error
        except TimeoutError as error:
            self._process.kill()
            raise EngineError(f"{self.name} took longer than {seconds:.0f} s to {request['do']}") from error
        if "error" in reply:
            raise (Unsupported if reply.get("unsupported") else EngineError)(f"{self.name}: {reply['error']}")
        return reply

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _line(self, seconds: float) -> bytes:
        """The next line. Raises TimeoutError or EOFError. No request is pipelined, so nothing follows it."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(seconds):
                    raise TimeoutError
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EOFError
                self._rest += piece
        line, self._rest = self._rest, b""
        return line
