"""Which requests begin alike: groups by the tokens of their first block."""

from __future__ import annotations

from dataclasses import dataclass

from ..item import Item


@dataclass(slots=True)
class Group:
    """Requests that are here and begin alike; ``opened`` is when the first of them arrived, ``number`` counts up."""

    number: int
    opened: float
    weight: float = 0.0
    size: int = 0


class Prefixes:
    """Groups by tenant and the first ``block`` tokens of prompts; a group ends when its last request left."""

    def __init__(self, block: int) -> None:
        self._block, self._next = block, 0
        self._groups: dict[tuple[str, tuple[int, ...]], Group] = {}
        self._of: dict[int, tuple[tuple[str, tuple[int, ...]], Group]] = {}

    def arrive(self, item: Item) -> Group:
        """The item's group, of size 1 if nobody here begins like it."""
        head = item.tenant, tuple(item.prompt[: self._block])
        group = self._groups.get(head)
        if group is None:
            group = self._groups[head] = Group(self._next, item.arrival)
            self._next += 1
        group.size += 1
        self._of[item.seq_id] = head, group
        return group

    def group(self, item: Item) -> Group:
        return self._of[item.seq_id][1]

    def leave(self, item: Item) -> None:
        head, group = self._of.pop(item.seq_id)
        group.size -= 1
        if not group.size:
            del self._groups[head]
