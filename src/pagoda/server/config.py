"""What a server is started with, beside the engine's own options. Every field has an effect."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import ConfigError, choices
from ..core.units import parse_bytes
from ..plan.accounts import SERVER_BYTES
from .parsers import REASONING_PARSERS, TOOL_PARSERS

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Times in seconds, sizes in bytes; None means no limit."""

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    """Names that requests may use for the model; the first one is told in answers."""
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * MIB
    memory_bytes: int = SERVER_BYTES
    """What connections, requests and stored responses may hold together, beside the engine (see `buffers`)."""
    upload_timeout: float = 30.0
    request_timeout: float = 900.0
    """From arrival to the last token."""
    send_timeout: float = 60.0
    """A reader that takes nothing for so long is let go."""
    drain_timeout: float = 30.0
    """What still runs so long after SIGTERM ends in an error."""
    sleep_after: float | None = None
    """Without a request for so long, weights and KV are given back until the next one."""
    max_waiting: int = 256
    """Requests that may wait beside those that run (max_num_seqs of the engine)."""
    max_concurrent_per_key: int | None = None
    tokens_per_minute_per_key: int | None = None
    kv_bytes_per_key: int | None = None
    share_prefix_cache: bool = False
    """Keys find each other's prefixes; otherwise each key has a cache of its own."""
    max_responses: int = 256
    """Answers of /v1/responses that are kept for previous_response_id."""
    response_ttl: float = 1800.0
    max_pins: int = 64
    max_pinned_share: float = 0.25
    """Share of the KV capacity that pinned prefixes may hold."""
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    log_prompts: bool = False
    """Prompts and answers become part of the log."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; give 1 to 65535, or 0 for any free one")
        for name in self.names:
            if not name.strip():
                raise ConfigError(f"a served model name is {name!r}; give the name that requests use")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/]+", origin):
                raise ConfigError(f"cors origin {origin!r}; give scheme://host, as https://example.org, or *")
        for name in ("max_body_bytes", "max_responses", "max_waiting", "max_pins"):
            _at_least(name, getattr(self, name), 0 if name.startswith("max_w") or name == "max_pins" else 1)
        for name in ("max_concurrent_per_key", "tokens_per_minute_per_key", "kv_bytes_per_key"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("memory_bytes", self.memory_bytes, MIB)
        for name in ("upload_timeout", "request_timeout", "send_timeout", "drain_timeout", "response_ttl"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give seconds above 0")
        if self.sleep_after is not None and not self.sleep_after > 0:
            raise ConfigError(f"sleep_after is {self.sleep_after}; give seconds above 0, or leave it out")
        for registry, name in ((TOOL_PARSERS, self.tool_call_parser), (REASONING_PARSERS, self.reasoning_parser)):
            accepted = ("auto", *(("none",) if registry is REASONING_PARSERS else ()), *registry.names())
            if name not in accepted:
                raise ConfigError(choices(registry.kind, name, accepted))
        if not 0 <= self.max_pinned_share <= 0.9:
            raise ConfigError(f"max_pinned_share is {self.max_pinned_share}; give a share between 0 and 0.9")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; give a whole number from {least}")


def bytes_or_none(text: str | None, what: str) -> int | None:
    """A size from the command line."""
    return None if text is None else parse_bytes(text, what=what)
