"""A server that nobody asks gives its memory back: weights and KV go, the next request brings the weights again.

The engine does the work (`AsyncLLM.sleep`); here it is decided when, and what hangs on the old KV is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ..core.errors import PagodaError
from ..core.units import format_bytes

if TYPE_CHECKING:
    from .service import Service

_log = logging.getLogger(__name__)


class Sleeper:
    """Sends the engine of one service to sleep, by command or after ``sleep_after`` seconds without a request."""

    def __init__(self, service: Service) -> None:
        self._service, self._busy_at = service, service.now()
        self._falling: asyncio.Task[int] | None = None

    async def sleep(self) -> int:
        """Now; returns the bytes that went back. Raises RequestError while requests run."""
        num_bytes = await self._service.llm.sleep()
        self._service.pins.forget()
        if num_bytes:
            _log.info("asleep: %s went back", format_bytes(num_bytes))
        return num_bytes

    def tick(self, now: float) -> None:
        """From the service's ticker."""
        after = self._service.config.sleep_after
        if self._service.jobs or self._service.llm.is_asleep:
            self._busy_at = now
        elif after is not None and now - self._busy_at >= after and (self._falling is None or self._falling.done()):
            self._busy_at = now
            self._falling = asyncio.get_running_loop().create_task(self.sleep())
            self._falling.add_done_callback(_told)


def _told(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and isinstance(task.exception(), PagodaError):  # a request came first, or the end
        _log.info("stays awake: %s", task.exception())
