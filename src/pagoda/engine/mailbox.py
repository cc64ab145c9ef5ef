"""How outputs get from the engine's thread to a reader in asyncio: one letter a request that grows, no queue of them.

A reader that is slower than the engine finds the deltas of several steps joined, so that nothing piles up behind it.
A step's letters go over to the loop in one call, and everything else happens in the loop's thread: no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from .outputs import RequestOutput


class Mailbox:
    """Read by one task of ``loop``, whose thread is the only one that touches it. Several requests may share one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._letters: dict[str, RequestOutput] = {}
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        """In the loop's thread (see ``deliver``): the reader finds it."""
        old = self._letters.get(output.request_id)
        output.tell()  # beside the engine's next step
        self._letters[output.request_id] = output if old is None else _joined(old, output)
        self._wake()

    def fail(self, error: Exception) -> None:
        """From any thread: the reader gets this error after what is already there."""
        _call_soon(self.loop, self._fail, error)

    async def take(self) -> list[RequestOutput]:
        """Wait for news: at most one output for each request. Raises the error that ``fail`` was given."""
        while not self._letters:
            if self._error is not None:
                raise self._error
            self._reader = self.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        letters, self._letters = list(self._letters.values()), {}
        return letters

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Answers:
    """Outputs of the requests that were submitted together. Close it: what still runs is aborted then."""

    def __init__(
        self, drop: Callable[[Iterable[str], Mailbox], None], request_ids: Sequence[str], mailbox: Mailbox
    ) -> None:
        self.open = set(request_ids)
        self._drop, self._mailbox = drop, mailbox

    async def take(self) -> list[RequestOutput]:
        """Wait for news: the newest output of each request that has any. Raises EngineClosedError."""
        outputs = await self._mailbox.take()
        for output in outputs:
            if output.finished:
                self.open.discard(output.request_id)
        return outputs

    def fail(self, error: Exception) -> None:
        """The reader's next ``take`` raises this error, once what is there was taken. The requests are aborted."""
        self._mailbox.fail(error)
        self._drop(self.open, self._mailbox)

    async def aclose(self) -> None:
        """Abort what has not ended; its pages are free before the next step. A second call does nothing."""
        if self.open:
            self._drop(self.open, self._mailbox)
            self.open.clear()


def deliver(letters: Iterable[tuple[Mailbox | None, RequestOutput]]) -> None:
    """From the engine's thread: every output into its mailbox, with one call a loop. Those that are gone lose nothing
    but news.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, RequestOutput]]] = {}
    for mailbox, output in letters:
        if mailbox is not None:
            by_loop.setdefault(mailbox.loop, []).append((mailbox, output))
    for loop, addressed in by_loop.items():
        _call_soon(loop, _put_all, addressed)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the loop was closed with readers still open: nobody is left to tell
        if not loop.is_closed():
            raise


def _put_all(addressed: list[tuple[Mailbox, RequestOutput]]) -> None:
    for mailbox, output in addressed:
        mailbox.put(output)


def _joined(old: RequestOutput, new: RequestOutput) -> RequestOutput:
    """The new state with the old one's unread text in front of its deltas."""
    unread = {answer.index: answer.delta for answer in old.outputs}
    for answer in new.outputs:
        answer.delta = unread.get(answer.index, "") + answer.delta
    return new
