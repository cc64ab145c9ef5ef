"""Runs on disk: every request's times, so that another run can be compared with them, and a page to look at."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..plan.simulator.sequence import Served
from .timeline import Sample

NAME = "serve.json"


@dataclass(slots=True)
class Run:
    """``label`` for people; ``summary`` is plain data; ``users`` of a closed loop, None of an open one."""

    label: str
    records: list[Served]
    samples: list[Sample] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    users: int | None = None


def write_records(folder: Path, run: Run) -> None:
    """``serve.json`` with ``summary``, ``requests`` and ``timeline``."""
    folder.mkdir(parents=True, exist_ok=True)
    requests = [
        {
            "at": r.at, "num_prompt": r.num_prompt, "num_output": r.num_output, "tenant": r.tenant,
            "num_cached": r.num_cached, "token_at": [round(at, 6) for at in r.token_at], "error": r.error,
        }
        for r in run.records
    ]  # fmt: skip
    data = {"summary": run.summary, "requests": requests, "timeline": [s.as_dict() for s in run.samples]}
    (folder / NAME).write_text(json.dumps(data) + "\n", encoding="utf-8")


def read_records(path: Path) -> list[Served]:
    """The requests of a ``serve.json``. Raises ConfigError naming the file and what is wrong with it."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["requests"]
        return [Served(**row | {"token_at": array("d", row["token_at"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no {NAME} of pagoda bench serve: {error}") from error


def answered(records: Sequence[Served]) -> list[Served]:
    """Those that have times to speak of."""
    return [r for r in records if r.token_at and not r.error]
