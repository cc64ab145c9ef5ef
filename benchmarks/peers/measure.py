"""One repetition: warm the engine, look at the machine, run, look again."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pagoda.bench.others import Meter

from ..probe import Probe
from .client import Client
from .machine import busy_neighbour
from .settings import Setting
from .store import Repetition

WARM_PROMPT = 1024  # longest prompt of a warm-up


def warm_up(client: Client, setting: Setting, seconds: float) -> None:
    """Runs ``shortened(setting)`` once, not measured."""
    client.generate(shortened(setting), seed_of(setting, -1, 0), seconds)


def shortened(setting: Setting) -> Setting:
    """The same batch, a few steps, no long prompt: enough for primitives and buffers to exist. What is a sequence's own
    stays as long as it is; a prefix is cut."""
    cut = max(0, setting.prompt - WARM_PROMPT)
    shared = max(0, setting.shared - cut)
    return replace(setting, prompt=setting.prompt - cut, new=min(setting.new, 4), shared=shared)


def measured(
    base: Repetition, client: Client, setting: Setting, prober: Callable[[], Probe], attempt: int, seconds: float
) -> Repetition:
    """``base`` with everything that was measured. Raises EngineError or Unsupported."""
    before = prober()
    with busy_neighbour(setting.neighbour):
        meter = Meter()
        result = client.generate(setting, seed_of(setting, base.round, attempt), seconds)
        use = meter.read()
    after = prober()
    return replace(
        base, rates=rates(setting, result), steps_s=[round(s, 6) for s in result["steps_s"]],
        first_s=round(result["first_s"], 6), before=_rounded(before), after=_rounded(after),
        foreign_cores=round(use.foreign, 3), steal_cores=round(use.steal, 3), peak_rss_bytes=client.peak_rss_bytes(),
    )  # fmt: skip


def seed_of(setting: Setting, number: int, attempt: int) -> int:
    """The same for every engine in a round; a repetition that is made again gets prompts that no cache has seen."""
    return zlib.crc32(f"{setting.name} {number} {attempt if attempt > number else 0}".encode())


def rates(setting: Setting, result: dict[str, Any]) -> dict[str, float]:
    """Tokens a second by metric, from a trace's summary."""
    found = {}
    if "decode" in setting.metrics:
        found["decode"] = result["decode_tokens"] / result["decode_s"]
    if "prefill" in setting.metrics:
        found["prefill"] = setting.batch * setting.prompt / result["first_s"]
    return found


def _rounded(probe: Probe) -> list[float]:
    return [round(value, 1) for value in probe.as_list()]
