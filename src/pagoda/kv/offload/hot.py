"""Pages of a lower tier that stay in the window from one step to the next, because they were chosen lately.

Every layer has an equal share of the places. A step goes through the layers in order, so with one pool for all, what
a layer keeps would be pushed out by the next ones before it is asked for again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


class HotPages:
    """``first``: the window's page at which the places begin, above 0, ``per_layer`` of them a layer. Beside them
    ``spill`` places from ``spill_first`` on hold what does not fit until the next ``take``.
    """

    def __init__(
        self, num_pages: int, num_layers: int, first: int, per_layer: int, spill_first: int, spill: int
    ) -> None:
        assert first > 0, "0 stands for no place"
        self._first, self.per_layer, self._spill_first, self.spill = first, per_layer, spill_first, spill
        # calloc: pages that are never chosen cost no memory.
        self._place_of = np.zeros(num_pages, np.int32)
        self._held = np.full((num_layers, per_layer), -1, np.int64)
        self._used = np.zeros((num_layers, per_layer), np.int64)
        self._clock = 0
        self.num_hits = self.num_misses = 0

    @property
    def room(self) -> int:
        """Pages that one ``take`` can have, at most."""
        return self.per_layer + self.spill

    def take(self, layer: int, ids: Int64s) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """Places int32 ``[n]`` of these pages, all different, and which of them (indices) have yet to be read there.

        They are valid until the next call. What was used longest ago makes room.
        """
        assert len(ids) <= self.room, f"{len(ids)} pages for {self.room} places"
        places, first, self._clock = self._place_of[ids], self._first + layer * self.per_layer, self._clock + 1
        hit = places > 0
        self._used[layer, places[hit] - first] = self._clock
        misses = np.flatnonzero(~hit)
        self.num_hits += len(ids) - len(misses)
        self.num_misses += len(misses)
        num = min(len(misses), self.per_layer - (len(ids) - len(misses)))
        if num:
            oldest = np.argpartition(self._used[layer], num - 1)[:num]
            gone, come = self._held[layer, oldest], ids[misses[:num]]
            self._place_of[gone[gone >= 0]] = 0
            self._held[layer, oldest], self._used[layer, oldest] = come, self._clock
            places[misses[:num]] = self._place_of[come] = first + oldest
        places[misses[num:]] = self._spill_first + np.arange(len(misses) - num)
        return places, misses

    def forget(self, ids: Int64s) -> None:
        """These pages have another content now, or what was read is not theirs."""
        places = self._place_of[ids]
        places = places[places > 0]
        self._place_of[ids] = 0
        layer, place = np.divmod(places - self._first, max(1, self.per_layer))
        self._held[layer, place], self._used[layer, place] = -1, 0
