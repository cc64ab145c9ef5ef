"""Which implementation of an op runs: needs of the call against declared abilities, decided once and remembered.

An op owns an `Op`: its reference (always able) and whatever faster implementations registered. A call builds a small
key of its static features (dtype, device, dimensions, options in use), finds the chosen function in a dict
(0.3 us), and calls it. Unknown means no: what an implementation does not declare, it is not given.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.errors import ConfigError, choices

# Modules that register implementations when imported; a missing extension leaves its reason here, not an exception.
PROVIDERS = ("cpu",)
PROFILE = "PAGODA_PROFILE"  # "1": time every op and every instruction of a program; `timings` has the sums
ENV = "PAGODA_KERNELS"  # "reference" (or any implementation's name) restricts the choice: for hunting bugs


@dataclass(frozen=True, slots=True)
class Needs:
    """What one call asks of an implementation."""

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)  # every dtype that takes part
    dims: tuple[int, ...] = ()  # head dimensions or row widths, where they matter
    options: frozenset[str] = frozenset()  # names of the optional arguments in use


@dataclass(frozen=True, slots=True)
class Features:
    """What an implementation can do. ``None`` for dtypes or dims means any; options must be listed."""

    devices: frozenset[str]
    dtypes: frozenset[torch.dtype] | None = None
    options: frozenset[str] = frozenset()
    max_dim: int | None = None
    same_dtype: bool = False  # all dtypes of the call must be equal
    multiple_of: int = 1  # every dim must be a multiple of it

    def why_not(self, needs: Needs) -> str | None:
        """The first need that is not met, in words; None when all are."""
        if needs.device not in self.devices:
            return f"device {needs.device} (has {', '.join(sorted(self.devices))})"
        if self.dtypes is not None and not set(needs.dtypes) <= self.dtypes:
            return f"dtype {', '.join(str(d) for d in needs.dtypes if d not in self.dtypes)}"
        if self.same_dtype and len(set(needs.dtypes)) > 1:
            return f"mixed dtypes {', '.join(map(str, needs.dtypes))}"
        if missing := needs.options - self.options:
            return f"option {', '.join(sorted(missing))}"
        for dim in needs.dims:
            if self.max_dim is not None and dim > self.max_dim:
                return f"dimension {dim} (at most {self.max_dim})"
            if dim % self.multiple_of:
                return f"dimension {dim} (multiples of {self.multiple_of})"
        return None


@dataclass(frozen=True, slots=True)
class Implementation:
    """One body behind an op's signature. ``features`` None: the reference, able to do everything."""

    name: str
    run: Callable[..., Any]
    features: Features | None = None

    def why_not(self, needs: Needs) -> str | None:
        return None if self.features is None else self.features.why_not(needs)


@dataclass(slots=True)
class Op:
    """An op's implementations, best first, and the choices made so far (key of static features -> function)."""

    name: str
    reference: Callable[..., Any]
    implementations: list[Implementation] = field(default_factory=list)
    chosen: dict[Hashable, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.implementations.append(Implementation("reference", self.reference))
        OPS[self.name] = self

    def resolve(self, key: Hashable, needs: Needs) -> Callable[..., Any]:
        """Chooses for these needs and remembers it under ``key``."""
        load_providers()
        run = self.choose(needs).run
        self.chosen[key] = run = timed(self.name, run) if profiling() else run
        return run

    def choose(self, needs: Needs) -> Implementation:
        """The first implementation that meets the needs; the reference when none does."""
        only = restriction()
        for implementation in self.implementations:
            if only in ("", implementation.name) and implementation.why_not(needs) is None:
                return implementation
        return self.implementations[-1]


def one_device(op: str, **tensors: torch.Tensor) -> str:
    """The type of the one device on which all lie. Bodies read plain addresses: another device's would crash them."""
    types = {name: tensor.device.type for name, tensor in tensors.items()}
    if len(set(types.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in types.items())
        raise ConfigError(f"{op}: {where}; accepted: all on one device")
    return next(iter(types.values()))


OPS: dict[str, Op] = {}
_restrictions: list[str] = []  # of `restricted`, innermost last
_providers: dict[str, str | None] = {}  # provider -> why it could not be loaded (None: loaded)


def restriction() -> str:
    """The one implementation that may run besides the reference, by `restricted` or by the environment; "" is any.

    Raises ConfigError for a name in the environment that no implementation has.
    """
    if _restrictions:
        return _restrictions[-1]
    only = os.environ.get(ENV, "")
    if only and only not in _accepted():
        raise ConfigError(f"{choices(ENV, only, _accepted())}; leave it unset for the fastest of all")
    return only


def _accepted() -> set[str]:
    """Names of implementations, of those that are missing here too: `available` has the reasons."""
    return {*PROVIDERS, *(one.name for op in OPS.values() for one in op.implementations)}


@contextmanager
def restricted(name: str) -> Iterator[None]:
    """Within the block only implementations called ``name`` (and references) are chosen, whatever was chosen before.

    For work that must pass through plain torch, such as gradients. Models built within the block keep to it.
    """
    _restrictions.append(name)
    _forget()
    try:
        yield
    finally:
        _restrictions.pop()
        _forget()


def _forget() -> None:
    for op in OPS.values():
        op.chosen.clear()


def register(op: str, name: str, run: Callable[..., Any], features: Features) -> None:
    """Adds an implementation before those that are there; choices made earlier are forgotten."""
    if op not in OPS:
        raise ConfigError(choices("op", op, OPS))
    OPS[op].implementations.insert(0, Implementation(name, run, features))
    OPS[op].chosen.clear()


def load_providers() -> dict[str, str | None]:
    """Imports every provider once. Returns provider -> reason it is missing, or None."""
    for provider in PROVIDERS:
        if provider not in _providers:
            _providers[provider] = "being loaded"  # for ops that are called while it is
            try:
                _providers[provider] = _load(provider)
            except BaseException:
                del _providers[provider]  # whoever asks next is told the same
                raise
    return dict(_providers)


def _load(provider: str) -> str | None:
    try:
        importlib.import_module(f"pagoda.kernels.{provider}")
    except ImportError as error:
        return str(error)
    return None


def profiling() -> bool:
    """Whether ops and programs are timed: ``PAGODA_PROFILE=1`` in the environment when they are first used."""
    return os.environ.get(PROFILE, "") not in ("", "0")


_timings: dict[str, list[float]] = {}  # op -> calls, seconds


def timings() -> dict[str, tuple[int, float]]:
    """Calls and seconds of every op that was called since it was profiled. Ops that call ops count both."""
    return {name: (int(calls), seconds) for name, (calls, seconds) in _timings.items()}


def timed(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, with its calls and seconds added to ``timings`` under this name."""
    sums = _timings.setdefault(name, [0, 0.0])

    def timed_run(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return run(*args, **kwargs)
        finally:
            sums[0] += 1
            sums[1] += time.perf_counter() - started

    return timed_run


def explain(op: str, needs: Needs) -> dict[str, str]:
    """Every implementation of ``op`` with its verdict: 'chosen', 'able' or the reason why not."""
    load_providers()
    if op not in OPS:
        raise ConfigError(choices("op", op, OPS))
    chosen = OPS[op].choose(needs)
    verdicts = {}
    for implementation in OPS[op].implementations:
        reason = implementation.why_not(needs)
        verdicts[implementation.name] = "chosen" if implementation is chosen else reason or "able"
    return verdicts


@dataclass(frozen=True, slots=True)
class Available:
    """What `pagoda doctor` shows."""

    ops: dict[str, list[str]]  # op -> names of its implementations, best first
    missing: dict[str, str]  # provider -> why it is not there


def available() -> Available:
    """All implementations found on this machine, and the reason for each provider that is missing."""
    importlib.import_module("pagoda.kernels.ops")
    missing = {name: reason for name, reason in load_providers().items() if reason is not None}
    return Available({name: [i.name for i in op.implementations] for name, op in sorted(OPS.items())}, missing)
