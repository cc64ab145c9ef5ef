"""How outputs get from the engine's thread to a reader in asyncio: one letter a request that grows, no queue of them.

A reader that is slower than the engine finds the deltas of several steps joined, so that nothing piles up behind it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

from .outputs import RequestOutput


class Mailbox:
    """Filled by the engine's thread, read by one task of ``loop``. Several requests may share one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._ready = asyncio.Event()
        self._letters: dict[str, RequestOutput] = {}
        self._error: Exception | None = None

    def put(self, output: RequestOutput) -> None:
        """From the engine's thread. The reader is woken by ``deliver``, once for all mailboxes of a loop."""
        with self._lock:
            old = self._letters.get(output.request_id)
            self._letters[output.request_id] = output if old is None else _joined(old, output)

    def fail(self, error: Exception) -> None:
        """From any thread: the reader gets this error after what is already there."""
        with self._lock:
            self._error = self._error or error
        _call_soon(self.loop, [self])

    async def take(self) -> list[RequestOutput]:
        """Wait for news: at most one output for each request. Raises the error that ``fail`` was given."""
        while True:
            with self._lock:
                if self._letters:
                    letters, self._letters = list(self._letters.values()), {}
                    return letters
                if self._error is not None:
                    raise self._error
                self._ready.clear()
            await self._ready.wait()

    def wake(self) -> None:
        """In the reader's loop."""
        self._ready.set()


def deliver(letters: Iterable[tuple[Mailbox | None, RequestOutput]]) -> None:
    """Put every output into its mailbox and wake each loop once. Mailboxes that are gone lose nothing but news."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Mailbox]] = {}
    for mailbox, output in letters:
        if mailbox is not None:
            mailbox.put(output)
            by_loop.setdefault(mailbox.loop, []).append(mailbox)
    for loop, mailboxes in by_loop.items():
        _call_soon(loop, mailboxes)


def _call_soon(loop: asyncio.AbstractEventLoop, mailboxes: list[Mailbox]) -> None:
    try:
        loop.call_soon_threadsafe(_wake_all, mailboxes)
    except RuntimeError:  # the loop was closed with readers still open: nobody is left to tell
        if not loop.is_closed():
            raise


def _wake_all(mailboxes: list[Mailbox]) -> None:
    for mailbox in mailboxes:
        mailbox.wake()


def _joined(old: RequestOutput, new: RequestOutput) -> RequestOutput:
    """The new state with the old one's unread text in front of its deltas."""
    unread = {answer.index: answer.delta for answer in old.outputs}
    for answer in new.outputs:
        answer.delta = unread.get(answer.index, "") + answer.delta
    return new
