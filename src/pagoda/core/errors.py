"""The one tree of errors. Every message names the value, what was accepted, and what to do.

A message is one line, because the command line shows it alone (exit code 2, no traceback).
"""

from __future__ import annotations

from collections.abc import Iterable


class PagodaError(Exception):
    """Base of every error that Pagoda raises on purpose."""


class ConfigError(PagodaError):
    """An option, parameter or config field has a value that is not accepted."""


class BudgetError(PagodaError):
    """The stated memory cannot hold what was asked; the message gives the numbers and the nearest that can."""


class ModelError(PagodaError):
    """A model cannot be found, read or run."""


class UnsupportedModelError(ModelError):
    """The architecture cannot run on a paged KV cache (state-space, encoder-decoder, …)."""


class WeightsError(ModelError):
    """A checkpoint is damaged, or its tensors do not match the architecture; the message names them."""


class RequestError(PagodaError):
    """A request cannot be served as sent; nobody else's request is touched."""


class EngineClosedError(PagodaError):
    """The engine was closed, or died, before the request ended."""


class AsleepError(PagodaError):
    """The engine gave its weights back and cannot get them again; it sleeps on, and the next request tries anew."""


def choices(what: str, got: object, accepted: Iterable[str] | str) -> str:
    """The house form of a bad-choice message: ``unknown dtype 'fp61'; accepted: auto, float32, …``."""
    names = ", ".join(str(name) for name in sorted(accepted)) if not isinstance(accepted, str) else accepted
    return f"unknown {what} {got!r}; accepted: {names}"
