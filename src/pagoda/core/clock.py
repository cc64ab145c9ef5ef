"""Time as an argument: the engine runs on the system's clock, tests and the simulator on a false one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a room that needs time is handed."""

    def now(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def sleep(self, seconds: float) -> None:
        """Returns when ``now()`` has grown by ``seconds``; none or negative: at once."""
        ...


class SystemClock:
    """The machine's monotonic clock (``perf_counter``: nanoseconds on Linux, no jumps when the date is set)."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


class FalseClock:
    """A clock that stands still until somebody moves it; ``sleep`` moves it and returns at once."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves time on. Raises ValueError when asked to go back."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Moves time on to ``moment`` exactly. Raises ValueError when asked to go back."""
        self.advance(0.0 if moment >= self._now else moment - self._now)
        self._now = moment

    def sleep(self, seconds: float) -> None:
        self.advance(max(0.0, seconds))
