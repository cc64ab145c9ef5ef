"""The pages of one KV format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..budget.ledger import Lease
from ..core.errors import BudgetError
from ..core.types import KVFormat
from ..kernels.shelves import Shelves
from .manager import KVManager
from .page_codes import PageCodes
from .policies._windowed import Learned
from .shared import Shared
from .storage import PageStorage


@dataclass(slots=True, eq=False)
class Store:
    """The pages of one KV format: who has them, and their bytes. ``learn``: says what its codec was calibrated to;
    ``codes``: how its pages are read, where they are encoded whole; ``shelves``: for what is noted of its sequences;
    ``shared``: who reads what of the model, ``reads``: names of what this store does.
    """

    manager: KVManager
    storage: PageStorage
    learn: Callable[[], Learned] = dict
    codes: PageCodes | None = None
    shelves: Shelves = field(default_factory=Shelves)
    shared: Shared = field(default_factory=Shared)
    reads: frozenset[str] = frozenset()

    @property
    def fmt(self) -> KVFormat:
        return self.manager.fmt

    @property
    def leased_bytes(self) -> int:
        """Bytes of the blocks that the pool may use now, and what their storage holds beside them."""
        return self.storage.held_bytes(self.manager.pool.num_blocks)

    @property
    def counted_bytes(self) -> int:
        """What of it counts against the total: all, but for the edges of a device's chunks (``Stores``)."""
        num_blocks = self.manager.pool.num_blocks
        return num_blocks * self.fmt.block_bytes if self.storage.is_chunked else self.storage.held_bytes(num_blocks)

    @property
    def first_bytes(self) -> int:
        """What the pool's next block takes beside its own bytes: the slack, where it is the first."""
        return 0 if self.manager.pool.num_blocks else self.storage.slack_bytes

    def try_grow(self, lease: Lease, others: int, num_blocks: int) -> bool:
        """Leases and holds what the pool's next ``num_blocks`` blocks take, ``others`` being the bytes that other
        stores have of the lease. False if they do not fit; nothing has changed then.
        """
        blocks = self.manager.pool.next_blocks(num_blocks) if self.storage.is_chunked else range(num_blocks)
        before = lease.num_bytes
        if not lease.try_resize(others + self.storage.held_bytes(self.manager.pool.num_blocks, blocks)):
            return False
        try:
            self.storage.hold_blocks(blocks)
        except BudgetError:  # another program has taken the device's memory
            lease.resize(before)
            return False
        return True

    def run_copies(self) -> None:
        """The page copies that the manager noted."""
        self.storage.run_copies(self.manager.take_copies())
