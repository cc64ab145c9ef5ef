from __future__ import annotations

import logging
import timeit
from dataclasses import dataclass

import pytest

from pagoda.core.events import EventBus


@dataclass(frozen=True)
class Landed:
    page: int


@dataclass(frozen=True)
class LandedHard(Landed):
    pass


def test_listeners_hear_their_class_in_order_until_they_leave() -> None:
    bus, heard = EventBus(), []
    leave = bus.subscribe(Landed, lambda event: heard.append(("first", event.page)))
    bus.subscribe(Landed, lambda event: heard.append(("second", event.page)))
    bus.publish(Landed(1))
    bus.publish(LandedHard(9))
    leave()
    leave()
    bus.publish(Landed(2))
    assert heard == [("first", 1), ("second", 1), ("second", 2)]


def test_wants_says_whether_building_an_event_is_worth_it() -> None:
    bus = EventBus()
    assert not bus.wants(Landed)
    leave = bus.subscribe(Landed, print)
    assert bus.wants(Landed)
    assert not bus.wants(LandedHard)
    leave()
    assert not bus.wants(Landed)


def test_one_function_subscribed_twice_is_left_once() -> None:
    bus, heard = EventBus(), []
    leave = bus.subscribe(Landed, heard.append)
    bus.subscribe(Landed, heard.append)
    leave()
    leave()
    bus.publish(Landed(1))
    assert heard == [Landed(1)]


def test_a_listener_that_fails_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    bus, heard = EventBus(), []

    def broken(event: Landed) -> None:
        raise ZeroDivisionError("broken metric")

    bus.subscribe(Landed, broken)
    bus.subscribe(Landed, heard.append)
    with caplog.at_level(logging.ERROR):
        bus.publish(Landed(1))
    assert heard == [Landed(1)]
    assert "Landed" in caplog.text
    assert "broken metric" in caplog.text


def test_publishing_to_nobody_costs_next_to_nothing() -> None:
    bus, event = EventBus(), Landed(1)
    assert (
        min(timeit.repeat(lambda: bus.publish(event), number=1000, repeat=5)) < 0.005
    )  # 5 us a call, on a busy machine
