"""What policies read of all their sequences: calibrations, and tables made of them. It stays while a sequence that has
pages reads it, and after that until its bytes are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator


class Shared:
    """Bytes by name (``PolicyStack.reads``), and how many sequences read each. ``forget`` is told of what left."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._readers: Counter[str] = Counter()
        self.forget: Callable[[str], object] = lambda name: None

    @property
    def num_bytes(self) -> int:
        """Of all that is held."""
        return sum(self._bytes.values())

    def use(self, names: Collection[str]) -> None:
        """One more sequence reads these, whether they are held already or not."""
        self._readers.update(names)

    def leave(self, names: Collection[str]) -> None:
        """One sequence less does."""
        self._readers.subtract(names)
        for name in names:
            assert self._readers[name] >= 0, f"{name} was left more often than used"
            if name in self._bytes:  # what was read last is the last to go
                self._bytes[name] = self._bytes.pop(name)

    def add(self, name: str, num_bytes: int) -> None:
        """So many bytes more, which are leased."""
        self._bytes[name] = self._bytes.get(name, 0) + num_bytes

    def idle(self) -> Iterator[str]:
        """Names that are held and nobody reads, those that were left longest ago first."""
        return iter([name for name in self._bytes if not self._readers[name]])

    def is_idle(self, names: Collection[str]) -> bool:
        """Whether nobody reads any of them."""
        return not any(self._readers[name] for name in names)

    def size(self, name: str) -> int:
        """Bytes that are held under a name."""
        return self._bytes.get(name, 0)

    def drop(self, name: str) -> None:
        """The name is not held any more."""
        self._bytes.pop(name, None)
        self.forget(name)
