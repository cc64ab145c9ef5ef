"""A run on disk: every request's times, so that another run can be compared with it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..plan.simulator.replica import Served
from .latency import e2e, ttft
from .load_plots import cumulative

NAME = "serve.json"


def write_records(folder: Path, records: Sequence[Served], summary: dict[str, Any]) -> None:
    """``serve.json`` with ``summary`` and ``requests``, and a picture of each measure."""
    folder.mkdir(parents=True, exist_ok=True)
    requests = [
        {
            "at": r.at, "num_prompt": r.num_prompt, "num_output": r.num_output, "tenant": r.tenant,
            "num_cached": r.num_cached, "token_at": [round(at, 6) for at in r.token_at], "error": r.error,
        }
        for r in records
    ]  # fmt: skip
    text = json.dumps({"summary": summary, "requests": requests})
    (folder / NAME).write_text(text + "\n", encoding="utf-8")
    done = [r for r in records if r.token_at and not r.error]
    series = {
        "ttft": [ttft(r) for r in done],
        "itl": [after - before for r in done for before, after in pairwise(r.token_at)],
        "e2e": [e2e(r) for r in done],
    }
    for name, values in series.items():
        (folder / f"{name}.svg").write_text(cumulative(f"{name} up to x", {name: values}), encoding="utf-8")


def read_records(path: Path) -> list[Served]:
    """The requests of a ``serve.json``. Raises ConfigError naming the file and what is wrong with it."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["requests"]
        return [Served(**row | {"token_at": array("d", row["token_at"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no {NAME} of pagoda bench serve: {error}") from error
