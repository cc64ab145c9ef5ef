"""The server's log: one line a record, as text or as JSON, with the id of the request that it is about.

Prompts and answers are never part of it unless that is asked for (``--log-prompts``), keys never.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, choices

if TYPE_CHECKING:
    from .jobs import RequestEnded
    from .service import Service

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_log = logging.getLogger(__name__)
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """A JSON object a line: time (UTC, ISO 8601), level, logger, message, and whatever ``extra`` the record has."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def set_up(form: str, level: str, file: str | None = None) -> None:
    """The root logger to stderr, or to ``file``. Raises ConfigError for an unknown format or level, or a bad file."""
    for what, got, accepted in (("log format", form, FORMATS), ("log level", level, LEVELS)):
        if got not in accepted:
            raise ConfigError(choices(what, got, accepted))
    try:
        handler = logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"log file {file!r} cannot be written ({error.strerror}); choose another --log-file"
        ) from error
    handler.setFormatter(
        JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Of others only what went wrong.
    for noisy in ("httpx", "httpcore", "uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_requests(service: Service, *, with_prompts: bool) -> None:
    """One record at the end of each request: who, what, how long, how many tokens. ``with_prompts``: also the texts."""
    from .jobs import RequestEnded

    def on_ended(ended: RequestEnded) -> None:
        usage = [output.usage for output in ended.outputs]
        fields: dict[str, Any] = {
            "request_id": ended.request_id,
            "endpoint": ended.endpoint,
            "key": ended.caller,
            "status": ended.status,
            "seconds": round(ended.ended - ended.arrival, 4),
            "prompt_tokens": sum(each.prompt_tokens for each in usage),
            "cached_tokens": sum(each.cached_tokens for each in usage),
            "completion_tokens": sum(each.completion_tokens for each in usage),
            "kv_bytes_peak": sum(output.memory.peak for output in ended.outputs),
            "preemptions": sum(output.num_preemptions for output in ended.outputs),
            **ended.labels,
        }
        if with_prompts:
            fields["prompts"] = [output.prompt or output.prompt_token_ids for output in ended.outputs]
            fields["answers"] = [[answer.text for answer in output.outputs] for output in ended.outputs]
        line = f"{ended.request_id} {ended.endpoint} {ended.status} in {fields['seconds']:.3f} s, "
        line += f"{fields['prompt_tokens']} + {fields['completion_tokens']} tokens"
        _log.info("%s", line, extra=fields)

    service.events.subscribe(RequestEnded, on_ended)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
