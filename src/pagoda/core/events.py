"""The work publishes events; metrics, logs and traces subscribe. The work never knows who listens.

With nobody listening ``publish`` is one failed dictionary look-up. Where building the event itself costs something::

    if bus.wants(StepEnded):
        bus.publish(StepEnded(...))
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

Event = TypeVar("Event")
_log = logging.getLogger(__name__)


class EventBus:
    """Publish and subscribe by the class of the event (exactly that class, not its bases).

    Safe from several threads: the lists of listeners are immutable and replaced whole, so ``publish`` takes no lock.
    Listeners run in the publisher's thread, in the order of their subscription; they must be quick. A listener that
    raises is logged with its traceback and the others still run: a broken metric must not end a request.
    """

    def __init__(self) -> None:
        self._listeners: dict[type, tuple[Callable[..., None], ...]] = {}
        self._lock = threading.Lock()

    def subscribe(self, kind: type[Event], listener: Callable[[Event], None]) -> Callable[[], None]:
        """Calls ``listener(event)`` for every later event of class ``kind``; returns what ends that (idempotent)."""
        with self._lock:
            self._listeners[kind] = (*self._listeners.get(kind, ()), listener)
        live = [True]

        def unsubscribe() -> None:
            with self._lock:
                if live.pop() if live else False:
                    self._remove(kind, listener)

        return unsubscribe

    def wants(self, kind: type) -> bool:
        """Whether anybody listens to events of this class."""
        return kind in self._listeners

    def publish(self, event: object) -> None:
        """Hands the event to every listener of its class."""
        for listener in self._listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:
                _log.exception("a listener of %s failed", type(event).__name__)

    def _remove(self, kind: type, listener: Callable[..., None]) -> None:
        left = list(self._listeners[kind])
        left.remove(listener)
        if left:
            self._listeners[kind] = tuple(left)
        else:
            del self._listeners[kind]
