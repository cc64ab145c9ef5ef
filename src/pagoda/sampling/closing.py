"""A mark that must have come by some token: how long a model may think before it has to answer. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Closing:
    """Unless ``ids`` have come in a row within the first ``after`` tokens of the output, they are the next tokens.

    ``begins``: it counts only for an output that begins with these ids (a model that opens its thoughts by itself).
    """

    after: int
    ids: tuple[int, ...]
    begins: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.after, int) or self.after < 1 or not self.ids:
            raise ConfigError(f"closing: after={self.after!r}, ids={self.ids!r}; give a number from 1 and some ids")


class ClosingState:
    """One sequence's place on the way to the mark: a function of its output."""

    __slots__ = ("_closing", "_is_over", "_last", "num_output")

    def __init__(self, closing: Closing) -> None:
        self._closing, self._is_over = closing, False
        self._last: list[int] = []
        self.num_output = 0

    def accept(self, token_id: int) -> None:
        """The token is now part of the output."""
        if self._is_over:
            return
        closing = self._closing
        if self.num_output < len(closing.begins) and token_id != closing.begins[self.num_output]:
            self._is_over = True
        self.num_output += 1
        self._last = [*self._last, token_id][-len(closing.ids) :]
        self._is_over = self._is_over or tuple(self._last) == closing.ids

    @property
    def forced(self) -> int | None:
        """The token that has to come next; None where the model is free. A mark that it has begun is completed."""
        if self._is_over or self.num_output < self._closing.after:
            return None
        return self._closing.ids[_overlap(self._last, self._closing.ids)]

    def copy(self) -> ClosingState:
        twin = ClosingState(self._closing)
        twin._is_over, twin._last, twin.num_output = self._is_over, self._last, self.num_output
        return twin


def _overlap(last: Sequence[int], ids: Sequence[int]) -> int:
    """How many of the ids the output ends with already."""
    return next(
        num for num in range(min(len(last), len(ids) - 1), -1, -1) if list(last[len(last) - num :]) == list(ids[:num])
    )
