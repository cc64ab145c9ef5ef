from __future__ import annotations

import pytest

from pagoda.core.clock import Clock, FalseClock, SystemClock


def test_the_system_clock_moves_on_and_sleeps() -> None:
    clock: Clock = SystemClock()
    start = clock.now()
    clock.sleep(0.01)
    clock.sleep(-1)  # not an error: the moment waited for is already past
    assert clock.now() - start >= 0.01


def test_a_false_clock_stands_still_until_moved() -> None:
    clock = FalseClock(start=5)
    assert clock.now() == clock.now() == 5
    clock.advance(2.5)
    clock.sleep(1)
    clock.sleep(-1)
    assert clock.now() == 8.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
