"""Stop strings over text that arrives piece by piece: what may be shown, and whether the text is over. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopCheck:
    """``text`` may be shown now; ``stop`` is the stop string that ended the sequence, or None while it goes on."""

    text: str
    stop: str | None = None


class StopChecker:
    """One sequence's stop strings. Everything it returns, concatenated, is the sequence's final text.

    The first stop string to be *complete* ends the text: the match that ends first, the longest of those that end
    together. So the outcome depends on the text alone and not on how tokens cut it, and no token is generated only to
    see whether a longer stop string would come. Text that might be the beginning of a stop string is held back until
    more text decides::

        stop "END"      push "the E" -> "the "   push "N" -> ""   push "ds" -> "ENds"
                                         hold "E"         hold "EN"        no match

    A stop string counts if it is complete only after ``min_tokens`` tokens; one complete before that is plain text.
    ``include`` keeps the stop string itself in the text.
    """

    def __init__(self, stops: Sequence[str], *, min_tokens: int = 0, include: bool = False) -> None:
        self.stops, self.min_tokens, self.include = tuple(stops), min_tokens, include
        self.stopped: str | None = None
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""

    def push(self, text: str, num_output: int) -> StopCheck:
        """The next piece, which the sequence's token number ``num_output`` (1 for the first) brought.

        Not to be called once a stop string has been met.
        """
        assert self.stopped is None, "text after the stop"
        if not self.stops:
            return StopCheck(text)
        buffer = self._held + text
        armed_from = len(self._held) if num_output > self.min_tokens else len(buffer)
        match = self._first_match(buffer, armed_from)
        if match is None:
            return self._show(buffer, self._safe_length(buffer))
        start, self.stopped = match
        end = start + len(self.stopped) if self.include else start
        self._held = ""
        return StopCheck(buffer[:end], self.stopped)

    def flush(self) -> str:
        """The text still held back, when the sequence ended for another reason."""
        held, self._held = self._held, ""
        return held

    def _show(self, buffer: str, length: int) -> StopCheck:
        self._held = buffer[length:]
        return StopCheck(buffer[:length])

    def _first_match(self, buffer: str, armed_from: int) -> tuple[int, str] | None:
        """(start, stop) of the match that ends first after ``armed_from``, the longest of those that end there."""
        found: list[tuple[int, int, str]] = []
        for stop in self.stops:
            start = buffer.find(stop, max(0, armed_from - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        return min(found)[1:] if found else None

    def _safe_length(self, buffer: str) -> int:
        """Where the longest tail begins that is a proper beginning of a stop string."""
        longest = max(len(stop) for stop in self.stops)
        for start in range(max(0, len(buffer) - longest + 1), len(buffer)):
            if buffer[start] in self._firsts:
                tail = buffer[start:]
                if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self.stops):
                    return start
        return len(buffer)
