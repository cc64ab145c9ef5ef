"""The waiting queue: lanes, each kept sorted by the policy's key, with removal by identity."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator

from .item import Item
from .policies.base import Key, SchedulingPolicy

_Entry = tuple[Key, int, Item]


class WaitingQueue:
    """Insertion costs a bisection and a memmove; the head costs one ``lane_rank`` per lane that is not empty."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._lanes: dict[Hashable, list[_Entry]] = {}
        self._places: dict[int, tuple[Hashable, Key]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Item]:
        """All items, the first in rank first."""
        for lane in sorted(self._lanes, key=self._rank):
            yield from (entry[2] for entry in self._lanes[lane])

    def add(self, item: Item) -> None:
        lane, key = self._policy.lane(item), self._policy.key(item)
        self._places[item.seq_id] = lane, key
        insort(self._lanes.setdefault(lane, []), (key, item.seq_id, item), key=_order)

    def head(self) -> Item:
        """The first in rank; there must be one."""
        lane = next(iter(self._lanes)) if len(self._lanes) == 1 else min(self._lanes, key=self._rank)
        return self._lanes[lane][0][2]

    def remove(self, item: Item) -> bool:
        """Take the item out wherever it stands; False if it does not wait."""
        place = self._places.pop(item.seq_id, None)
        if place is None:
            return False
        entries = self._lanes[place[0]]
        del entries[bisect_left(entries, (place[1], item.seq_id), key=_order)]
        if not entries:
            del self._lanes[place[0]]
        return True

    def refile(self, item: Item) -> None:
        """The policy ranks the item anew; nothing happens to one that does not wait."""
        if self.remove(item):
            self.add(item)

    def position(self, item: Item) -> int | None:
        """How many stand before the item as ranks are now; None if it does not wait."""
        place = self._places.get(item.seq_id)
        if place is None:
            return None
        lane, key = place
        mine = self._rank(lane)
        before = sum(len(entries) for other, entries in self._lanes.items() if self._rank(other) < mine)
        return before + bisect_left(self._lanes[lane], (key, item.seq_id), key=_order)

    def _rank(self, lane: Hashable) -> tuple[Key, Key, int]:
        key, seq_id, head = self._lanes[lane][0]
        return self._policy.lane_rank(lane, head), key, seq_id


def _order(entry: _Entry) -> tuple[Key, int]:
    return entry[0], entry[1]
