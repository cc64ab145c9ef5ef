"""Work in turns: steps that were held up, rounds that others disturbed, ratios that do not settle."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from pagoda.bench import others
from pagoda.bench.others import CpuUse, Meter
from pagoda.bench.turns import FEWEST, MOST, Steps, in_turns


class Machine:
    """A false clock, and what others use of it in each round."""

    def __init__(self, foreign: list[float] | None = None, steal: float = 0.0) -> None:
        self.now, self.rounds, self.order = 0.0, 0, ""
        self._foreign, self._steal = foreign or [], steal

    def work(self, who: str, *rounds: list[float]):
        """Steps of ``decode``, other ones in each round, the last again and again."""
        left = list(rounds)

        def run() -> Steps:
            self.order += who
            steps = left.pop(0) if len(left) > 1 else left[0]
            self.now += sum(steps)
            return {"prefill": [1.0], "decode": steps}

        return run

    def meter(self) -> Machine:
        return self

    def read(self) -> CpuUse:
        self.rounds += 1
        return CpuUse(self._foreign.pop(0) if self._foreign else 0.0, self._steal)

    def race(self, first, second, **options):
        return in_turns(first, second, meter=self.meter, clock=lambda: self.now, **options)


def test_steps_that_were_held_up_count_for_nothing() -> None:
    """And a step that is long in every round counts as it is."""
    machine = Machine()
    steady = machine.work("a", [2.0, 2.0, 6.0])
    hiccups = machine.work("b", [1.0, 9.0, 3.0], [8.0, 1.0, 3.0], [1.0, 1.0, 30.0], [1.0, 1.0, 3.0])
    found = machine.race(steady, hiccups, seconds=1000)
    assert found["decode"].value == 2.0
    assert found["prefill"].value == 1.0
    assert not found["prefill"].noisy
    assert machine.order.startswith("abbaab"), "who goes first changes"


def test_a_settled_ratio_takes_the_fewest_rounds() -> None:
    machine = Machine()
    found = machine.race(machine.work("a", [3.0]), machine.work("b", [1.0]))
    assert (found["decode"].value, found["decode"].noisy, machine.rounds) == (3.0, False, FEWEST)


def test_rounds_of_others_are_dropped_and_made_again() -> None:
    machine = Machine([0.9, 0.0, 0.5, 0.0, 0.0])
    slow = [[30.0], [3.0], [50.0], [3.0], [3.0]]
    found = machine.race(machine.work("a", *slow), machine.work("b", [1.0]), seconds=1000)
    assert (found["decode"].value, found["decode"].noisy, machine.rounds) == (3.0, False, 5)


@pytest.mark.parametrize("machine", [Machine([1.0] * MOST), Machine(steal=0.5)], ids=["others", "host"])
def test_a_machine_that_is_never_alone_is_said_to_be_noisy(machine: Machine) -> None:
    found = machine.race(machine.work("a", [3.0]), machine.work("b", [1.0]), seconds=1000)
    assert (found["decode"].value, found["decode"].noisy, machine.rounds) == (3.0, True, MOST)


def test_a_ratio_that_hangs_on_one_round_is_noisy() -> None:
    """However long it is tried; with little time the fewest rounds are made."""
    for seconds, rounds in ((10_000, MOST), (0.0, FEWEST)):
        machine, rng = Machine(), random.Random(3)
        wild = [[10 * rng.random()] for _ in range(MOST)]
        found = machine.race(machine.work("a", [3.0]), machine.work("b", *wild), seconds=seconds)
        assert found["decode"].noisy
        assert not found["prefill"].noisy
        assert machine.rounds == rounds


def test_rounds_with_other_steps_than_most_are_left_out() -> None:
    machine = Machine()
    found = machine.race(machine.work("a", [1.0], [2.0, 2.0]), machine.work("b", [1.0, 1.0]), seconds=1000)
    assert found["decode"].value == 2.0


def test_the_meter_takes_what_is_ours_off(monkeypatch) -> None:
    """In two seconds all CPUs worked for 1.5 s and the host took 0.4; 0.9 s of that was this process."""
    read = iter([(10.0, 1.0, 5.0), (11.5, 1.4, 5.9)])
    monkeypatch.setattr(others, "_cpu_seconds", lambda: next(read))
    now = iter([100.0, 102.0])
    monkeypatch.setattr(others.time, "perf_counter", lambda: next(now))
    use = Meter().read()
    assert use.foreign == pytest.approx(0.3)
    assert use.steal == pytest.approx(0.2)


def test_what_a_child_does_is_ours() -> None:
    before = others._own_ticks()
    loop = "import time\nwhile time.process_time() < 0.3: pass"
    with subprocess.Popen([sys.executable, "-S", "-c", loop]) as child:
        child.wait()
    assert others._own_ticks() - before >= 20
