"""Where the time of the steps goes: seconds inside kernels by kind, and what is left for Python and allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..kernels import dispatch

if TYPE_CHECKING:
    from ..models.load import Loaded
    from .counters import Counters


@dataclass(frozen=True, slots=True)
class Profile:
    """Sums since the engine was built, to be subtracted from one another. ``kernels``: name -> calls, seconds."""

    steps: int
    step_seconds: float
    kernels: dict[str, tuple[int, float]]

    @property
    def outside_seconds(self) -> float:
        """What the steps spent outside of kernels."""
        return self.step_seconds - sum(seconds for _, seconds in self.kernels.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, milliseconds a step; the costliest first."""
        each = 1e3 / max(1, self.steps)
        ranked = sorted(self.kernels.items(), key=lambda item: -item[1][1])
        return {
            "steps": self.steps,
            "step_ms": self.step_seconds * each,
            "outside_ms": self.outside_seconds * each,
            "kernels_ms": {name: seconds * each for name, (_, seconds) in ranked},
        }

    def since(self, before: Profile) -> Profile:
        """What was added after ``before``."""
        none = (0, 0.0)
        found = {
            name: (calls - before.kernels.get(name, none)[0], seconds - before.kernels.get(name, none)[1])
            for name, (calls, seconds) in self.kernels.items()
        }
        used = {name: sums for name, sums in found.items() if sums[0]}
        return Profile(self.steps - before.steps, self.step_seconds - before.step_seconds, used)


def profile_of(loaded: Loaded, counters: Counters) -> Profile | None:
    """The sums so far; None unless the process runs with ``PAGODA_PROFILE=1``. Ops are summed over all engines of the
    process, a program's instructions belong to this engine alone."""
    if not dispatch.profiling():
        return None
    sums = dispatch.timings()
    for name, (calls, seconds) in getattr(loaded.model, "timings", dict)().items():
        before = sums.get(name, (0, 0.0))  # the likeliest tokens are found by the program, and by an op in other steps
        sums[name] = before[0] + calls, before[1] + seconds
    return Profile(counters.steps, counters.step_seconds, sums)
