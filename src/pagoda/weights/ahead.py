"""Reading ahead: a thread fills a ring of bytes with what will be asked for next, while what came before is used.

    ring   | … free | group 4 | group 5 (being read) | free | group 3 (in the consumer's hands) | … |

A group is given back when the next is asked for. The ring holds the largest group; smaller ones are read as far ahead
as they fit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Fill = Callable[[int, "torch.Tensor"], None]
"""Reads group ``index`` into the bytes that it is given."""


class ReadAhead:
    """Groups of ``sizes`` bytes in a ring of ``buffer``, filled in order by ``fill`` on a thread of its own.

    ``repeat``: after the last group comes the first again, for ever.
    """

    def __init__(self, sizes: Sequence[int], buffer: torch.Tensor, fill: Fill, *, repeat: bool = False) -> None:
        assert max(sizes, default=0) <= buffer.numel(), "a group is larger than the ring"
        self._sizes, self._buffer, self._fill, self._repeat = list(sizes), buffer, fill, repeat
        self._changed = threading.Condition()
        self._filled: deque[tuple[int, int]] = deque()  # (group, place) ready to be taken, oldest first
        self._held: deque[tuple[int, int]] = deque()  # (place, bytes) of all that is in the ring, oldest first
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="pagoda-read-ahead", daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, torch.Tensor]:
        """The next group's number and bytes, valid until ``give_back``. Raises what ``fill`` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._filled or self._error is not None)
            if not self._filled:
                assert self._error is not None
                raise self._error
            group, place = self._filled.popleft()
        return group, self._buffer[place : place + self._sizes[group]]

    def give_back(self) -> None:
        """The oldest group that was taken is no longer needed."""
        with self._changed:
            self._held.popleft()
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread after the read that it is in. A second call does nothing."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Every group once, each given back when the next is asked for."""
        for _ in self._sizes:
            yield self.take()[1]
            self.give_back()

    def _work(self) -> None:
        try:
            while True:
                for group, size in enumerate(self._sizes):
                    place = self._room_for(size)
                    if place is None:
                        return
                    self._fill(group, self._buffer[place : place + size])
                    with self._changed:
                        self._filled.append((group, place))
                        self._changed.notify_all()
                if not (self._repeat and self._sizes):
                    return
        except BaseException as error:  # whatever it is, the consumer must hear of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _room_for(self, size: int) -> int | None:
        """Waits for a place, and takes it; None when it is time to stop."""
        with self._changed:
            while not self._stopped:
                place = self._free_place(size)
                if place is not None:
                    self._held.append((place, size))
                    return place
                self._changed.wait()
        return None

    def _free_place(self, size: int) -> int | None:
        if not self._held:
            return 0
        first, (last, last_size) = self._held[0][0], self._held[-1]
        end = last + last_size
        if last >= first:  # in use: one piece, free before and after it
            if end + size <= self._buffer.numel():
                return end
            return 0 if size <= first else None
        return end if end + size <= first else None
