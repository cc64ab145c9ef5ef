"""The command line run as a person runs it: a process of its own, its output, its exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

MODEL = "lantern"


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def pagoda(*args: str, stdin: str | bytes = "", timeout: float = 180, env: dict[str, str] | None = None) -> Finished:
    """``pagoda args…``; fails the test on a traceback, whatever else happens."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(
        [sys.executable, "-m", "pagoda", *args],
        input=data,
        capture_output=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )
    finished = Finished(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in finished.err, finished.err
    return finished


def in_process(capfd: Any, *args: str, stdin: str = "") -> Finished:
    """As ``pagoda``, but in this process (two seconds saved per call: torch is imported already)."""
    from pagoda.cli.main import main

    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            main(list(args))
        except SystemExit as exit_:
            code = exit_.code or 0
    out, err = capfd.readouterr()
    return Finished(int(str(code)), out, err)
