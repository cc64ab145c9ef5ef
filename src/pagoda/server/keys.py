"""Who may ask: API keys from the command line, the environment or a file, compared in constant time.

A key is known by its digest only. ``Caller.name`` is what logs, metrics and limits see; it does not give the key away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError

MIN_KEY_CHARS = 8


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. Without configured keys everybody is ``anonymous``."""

    name: str
    is_admin: bool = False


ANONYMOUS = Caller("anonymous", is_admin=True)


class Keys:
    """The keys of a server. ``user_keys`` maps a caller's name to its key; the admin key opens every door."""

    def __init__(self, user_keys: Mapping[str, str] | None = None, admin_key: str | None = None) -> None:
        self._known = [(_digest(key), Caller(name)) for name, key in (user_keys or {}).items()]
        if admin_key is not None:
            self._known.append((_digest(admin_key), Caller("admin", is_admin=True)))
        self._open = not user_keys
        self._has_admin = admin_key is not None

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return not self._open

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        """Who has sent these headers (names in lower case); None for a missing or wrong key."""
        given = _given_key(headers)
        found = None
        if given is not None:
            digest = _digest(given)
            for known, caller in self._known:  # all of them, always: time tells nothing
                if hmac.compare_digest(known, digest):
                    found = caller
        if found is None and self._open:
            return Caller("anonymous", is_admin=not self._has_admin)
        return found


def _given_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return headers.get("x-api-key")  # Anthropic's clients


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(given: Iterable[str], file: str | None, environment: Mapping[str, str]) -> Keys:
    """Keys from ``--api-key``, ``--api-key-file`` (lines ``key`` or ``name:key``) and PAGODA_API_KEY; the admin key
    from PAGODA_ADMIN_KEY or a line ``admin:key``. Raises ConfigError; keys are never part of the message.
    """
    named = {f"key{n}": key for n, key in enumerate(given, 1)}
    if environment.get("PAGODA_API_KEY"):
        named["env"] = environment["PAGODA_API_KEY"]
    admin = environment.get("PAGODA_ADMIN_KEY") or None
    for number, line in enumerate(_lines(file), 1):
        name, colon, key = line.partition(":")
        name, key = (name.strip(), key.strip()) if colon else (f"line{number}", line)
        if name == "admin":
            admin = key
        elif name in named:
            raise ConfigError(f"api key file {file!r} names {name!r} twice; give each key its own name")
        else:
            named[name] = key
    for name, key in [*named.items(), *([("admin", admin)] if admin else [])]:
        if len(key) < MIN_KEY_CHARS:
            raise ConfigError(f"the api key {name!r} has {len(key)} characters; give at least {MIN_KEY_CHARS}")
    if len({*named.values(), admin}) != len(named) + 1:
        raise ConfigError("two api keys are equal; give each caller its own")
    return Keys(named, admin)


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api key file {file!r} cannot be read ({getattr(error, 'strerror', error)})") from error
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not lines:  # or the server would be open to everybody
        raise ConfigError(f"api key file {file!r} holds no key; write one a line: KEY, NAME:KEY, or admin:KEY")
    return lines
