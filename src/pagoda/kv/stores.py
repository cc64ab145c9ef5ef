"""Pages of several KV formats in one engine: each format has its own pool and bytes, all of them one lease.

    kv lease │ float32 blocks ██████░░ │ int8 blocks ███░ │ free: whichever format asks next │

A store is made when a request first names its format. Blocks are leased one by one, and a format that runs out takes
the blocks that others do not use (free ones, then those of prefixes that nobody needs) before it gives up prefixes of
its own. A sequence lives in one store; stores never share pages, so each has a prefix cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..budget.ledger import Lease
from ..core.errors import BudgetError, ConfigError
from ..core.types import KVFormat
from ..core.units import format_bytes
from ..kernels.memory import HUGE_BYTES
from ..kernels.shelves import Shelves
from .audit import audit
from .device_region import Driver
from .manager import KVManager
from .offload.storage import OffloadedStorage
from .offload.tier_file import SPAN, TierFile
from .page_codes import PageCodes
from .pages import MAX_PAGES, PagePool
from .policies._windowed import Learned, WindowedCodec
from .policies.base import Stored
from .prefix import PrefixCache
from .shared import Shared
from .storage import PageStorage
from .store import Store
from .store_stats import stats_of
from .stored_formats import stored_format, why_not_stored
from .windows import Windows

MIN_HUGE_PAGES = 64  # a store of fewer declines huge pages: their slack (`PageStorage`) is at most this part of it


class Stores:
    """All formats. ``total_bytes`` is the most that their blocks, and what policies remember of sequences, may take
    together; ``lease`` is what the blocks have, ``state_lease`` what the policies have.

    make_prefix  a prefix cache for a pool, or None.
    address_bytes  what ``total_bytes`` may be raised to later: address space, which costs nothing.
    driver  who gives memory on another device than a CPU (default: CUDA's own).
    windows  of the model's layers, 0 where one sees everything: pages that none reaches are given up.

    On a CUDA device blocks lie in chunks of 2 MiB. The total counts blocks, the lease counts chunks: what chunks hold
    beside blocks has to be left free in the ledger.
    """

    def __init__(
        self,
        fmt: KVFormat,
        total_bytes: int,
        lease: Lease,
        state_lease: Lease,
        device: torch.device | str,
        make_prefix: Callable[[PagePool], PrefixCache | None],
        *,
        address_bytes: int = 0,
        driver: Driver | None = None,
        windows: Sequence[int] = (),
    ) -> None:
        self._windows = tuple(windows)
        self._model_fmt, self.total_bytes, self._lease = fmt, total_bytes, lease
        self._state_lease, self._address_bytes = state_lease, max(total_bytes, address_bytes)
        self._device, self._make_prefix = torch.device(device), make_prefix
        self._driver = driver
        self.shelves = Shelves()
        """Where what is noted of sequences lies."""
        self.shelves.open = _has_slack(total_bytes)
        self.calibration: Callable[[str], Learned] = _none
        self._by_dtype: dict[str, Store] = {}
        self.shared = Shared()
        """Of the state lease: calibrations."""
        self.sure_bytes = 0
        """Of the lease: never given back for others (`keep`)."""
        self.default = self._open(fmt)
        self.offloaded: Store | None = None
        """Pages in a lower tier, none of them in the lease (`offload`)."""

    def __iter__(self) -> Iterator[Store]:
        return iter([*self._by_dtype.values(), *([] if self.offloaded is None else [self.offloaded])])

    def __len__(self) -> int:
        return len(self._by_dtype)

    def of(self, stored: Stored | WindowedCodec | None, *, offload: bool = False) -> Store:
        """The store of a codec (None: of the engine's own format), opened if this is the first to name it; ``offload``:
        of the lower tier.

        Raises ConfigError where it cannot be opened.
        """
        if offload:
            self.check(stored, offload=True)
            assert self.offloaded is not None
            return self.offloaded
        if stored is None or stored.codec == self.default.fmt.dtype:
            return self.default
        self.check(stored)
        store = self._by_dtype.get(stored.codec)
        return store or self._open(self.format_of(stored), None if isinstance(stored, Stored) else stored)

    def format_of(self, stored: Stored | WindowedCodec | None) -> KVFormat:
        """The format of the pages that ``of`` gives out; opens nothing, so that any thread may ask."""
        if stored is None or stored.codec == self.default.fmt.dtype:
            return self.default.fmt
        return stored_format(self._model_fmt, stored)

    def check(self, stored: Stored | WindowedCodec | None, *, offload: bool = False) -> None:
        """Raises ConfigError if ``of`` would."""
        if offload and self.offloaded is None:
            raise ConfigError(
                "kv='offload' has no tier to go to; start with kv_offload, the bytes for it, and for a disk also with "
                "kv_offload_dir"
            )
        if stored is None or stored.codec == self.default.fmt.dtype:
            return
        if isinstance(stored, WindowedCodec) and (reason := why_not_stored(stored, self._model_fmt)) is not None:
            raise ConfigError(f"kv={stored.method!r} cannot run on this model: {reason}")

    def audit(self) -> None:
        """Recounts every store. Raises AssertionError naming what does not balance."""
        for store in self:
            audit(store.manager)
        leased = sum(store.leased_bytes for store in self)
        assert leased == self._lease.num_bytes, f"stores have blocks of {leased} bytes, {self._lease.num_bytes} leased"

    def stats(self) -> dict[str, Any]:
        """As `store_stats.stats_of`."""
        return stats_of(self.default, self._by_dtype, self.offloaded) | {
            "policy_bytes": self.state_bytes, "calibration_bytes": self.shared.num_bytes,
        }  # fmt: skip

    @property
    def touched_bytes(self) -> int:
        """Bytes that may be resident."""
        return sum(
            store.leased_bytes
            if store.storage.is_chunked
            else store.manager.pool.num_touched_blocks * store.fmt.block_bytes
            for store in self._by_dtype.values()
        )

    def close(self) -> None:
        """Every page goes back to the system."""
        for store in self:
            store.storage.close()

    def offload(self, tier: TierFile, window_bytes: int, longest: int) -> None:
        """Opens the store of sequences that lie in a lower tier; ``longest``: tokens of the longest. Bytes of both are
        leased by the caller.
        """
        fmt = self.default.fmt
        pool = PagePool(fmt, tier.num_blocks)
        manager = KVManager(fmt, pool, self._make_prefix(pool))
        self.offloaded = Store(manager, OffloadedStorage(fmt, tier, window_bytes, longest))
        self.offloaded.shelves, self.offloaded.shared = self.shelves, self.shared

    def name_prefixes(self, fingerprint: str) -> None:
        """What is computed from now on is keyed with ``fingerprint``; what was is found again under its own name only.
        Sequences that are under way have KV of both, and offer no more.
        """
        for store in self:
            store.manager.stop_offering_all()
            if store.manager.prefix is not None:
                store.manager.prefix.fingerprint = fingerprint

    def tidy(self) -> None:
        """Free places of the lower tier cost its disk nothing: at once where nobody has pages there, else as soon as
        they are worth the calls.
        """
        if self.offloaded is None:
            return
        pool = self.offloaded.manager.pool
        if pool.num_stale_blocks >= (SPAN if pool.num_used_pages else 1):
            self.offloaded.storage.release_blocks(pool.give_back(pool.num_stale_blocks))

    def _learned_of(self, codec: WindowedCodec) -> Learned:
        return self.calibration(codec.method) if codec.calibrated else {}

    def _open(self, fmt: KVFormat, windowed: WindowedCodec | None = None) -> Store:
        huge = self._device.type == "cpu" and self._driver is None and _has_slack(self.total_bytes)
        max_blocks = self._limit(fmt, self.total_bytes - (HUGE_BYTES if huge else 0))
        pool = PagePool(fmt, 0, max_blocks=max_blocks)
        addresses = self._limit(fmt, self._address_bytes)
        way = _Growth(self, fmt)
        settled = fmt.page_size if windowed is None else windowed.settled(fmt.page_size)
        prefix = self._make_prefix(pool) if settled else None
        # Pages that are encoded whole hold the same slots in all layers.
        windows = Windows.of(self._windows, fmt) if windowed is None else None
        manager = KVManager(fmt, pool, prefix, grow=way.grow, growable=way.growable, settled=settled, windows=windows)
        storage = PageStorage(fmt, addresses, self._device, huge=huge, driver=self._driver)
        store = Store(manager, storage, shelves=self.shelves, shared=self.shared)
        if windowed is not None:
            store.learn = partial(self._learned_of, windowed)
            store.reads = windowed.calibrated | {windowed.codec}
            store.codes = PageCodes(fmt, store.learn, partial(self.hold_shared, windowed.codec))
        self._by_dtype[fmt.dtype] = store
        return store

    @staticmethod
    def _limit(fmt: KVFormat, num_bytes: int) -> int:
        """Blocks of that many bytes, as far as page ids reach."""
        return min(max(0, num_bytes) // fmt.block_bytes, MAX_PAGES // fmt.pages_per_block)

    # Size at run time -----------------------------------------------------------------------------------------------

    def set_total(self, total_bytes: int) -> None:
        """Blocks and policies may take that much together from now on. Free blocks and unused prefixes beyond it leave
        at once; blocks in use stay until their sequences are gone (see ``excess_bytes``).

        Raises BudgetError where stores have no address space for it.
        """
        if total_bytes > self._address_bytes:
            raise BudgetError(
                f"{format_bytes(total_bytes)} of KV are more than the {format_bytes(self._address_bytes)} that this "
                "machine could ever give; ask for less"
            )
        self.total_bytes = total_bytes
        self.shelves.open = _has_slack(total_bytes)
        for store in self._by_dtype.values():
            if store.storage.slack_bytes and not _has_slack(total_bytes):
                store.storage.drop_slack(store.manager.pool.num_used_blocks)
        self._lease.resize(sum(store.leased_bytes for store in self))
        for store in self._by_dtype.values():
            store.manager.pool.set_limit(self._limit(store.fmt, total_bytes - store.storage.slack_bytes))
        self._make_room(self.excess_bytes)

    @property
    def excess_bytes(self) -> int:
        """What is leased beyond the total, since its sequences are still there."""
        return max(0, -self._unused_bytes)

    def give_back(self, num_bytes: int) -> int:
        """Free blocks and unused prefixes leave, the way the ledger asks (``Lease.reclaim``): returns their bytes."""
        before = self._lease.num_bytes
        self._give_back(None, min(num_bytes, before - self.sure_bytes))
        return before - self._lease.num_bytes

    def keep(self, num_bytes: int) -> None:
        """Leases blocks of so many bytes of the engine's own format now, which ``give_back`` leaves alone: for an
        engine whose ledger others use too. Raises BudgetError.
        """
        fmt, pool = self.default.fmt, self.default.manager.pool
        wanted = num_bytes // fmt.block_bytes
        found = self.take(fmt, wanted)
        if found < wanted:
            raise BudgetError(f"KV of {format_bytes(num_bytes)} was free a moment ago; try again")
        pool.grow(found)
        self._lease.resize(sum(store.leased_bytes for store in self))
        self.sure_bytes = self._lease.num_bytes

    # Blocks that go from one format to another ----------------------------------------------------------------------

    def take(self, taker: KVFormat, num_blocks: int, last: bool = False) -> int:
        """Leases up to ``num_blocks`` more blocks for a format, others' unused ones if need be; returns how many.
        ``last``: also from calibrations that nobody reads, if that will do.
        """
        store = self._by_dtype[taker.dtype]
        missing = num_blocks * taker.block_bytes + store.first_bytes - self._unused_bytes
        if missing > 0:
            wanted = self._unused_bytes + missing
            self._give_back(taker, missing)
            if last and self.growable(taker) >= num_blocks:
                self._drop_idle(wanted - self._unused_bytes, taker)
            num_blocks = min(num_blocks, (self._unused_bytes - store.first_bytes) // taker.block_bytes)
        others = self._lease.num_bytes - store.leased_bytes
        while num_blocks > 0 and not store.try_grow(self._lease, others, num_blocks):
            num_blocks //= 2
        return max(0, num_blocks)

    def hold_state(self, num_bytes: int) -> bool:
        """Leases what policies remember now, and what is unused on the shelves between, from the bytes of blocks that
        nobody uses if need be. False if it does not fit; the old lease stays then.
        """
        return self._hold(lambda: num_bytes + self.shared.num_bytes + self.shelves.unused_bytes)

    def hold_shared(self, name: str, num_bytes: int) -> bool:
        """Leases what policies read of all sequences (calibrations), in the same way. It stays while sequences
        with pages read ``name``, and until its bytes are wanted after that.
        """
        state = self.state_bytes
        if not self._hold(lambda: state + self.shared.num_bytes + num_bytes):
            return False
        self.shared.add(name, num_bytes)
        return True

    def could_hold(self, num_bytes: int) -> bool:
        """Whether so many bytes are unused, or could be at best."""
        missing = num_bytes - self._unused_bytes
        return missing <= 0 or missing <= self._idle_bytes()

    def _hold(self, wanted: Callable[[], int]) -> bool:
        """``wanted``: bytes that the state lease shall have; fewer when something that is shared has left."""
        if not self.could_hold(wanted() - self._state_lease.num_bytes):
            return False  # before prefixes go for nothing
        missing = wanted() - self._state_lease.num_bytes - self._unused_bytes
        if missing > 0:
            self._make_room(missing)
            if wanted() - self._state_lease.num_bytes > self._unused_bytes:
                return False
        if not self._state_lease.try_resize(wanted()):  # others have what was unused
            self._make_room(wanted() - self._state_lease.num_bytes)
        return self._state_lease.try_resize(wanted())

    def _idle_bytes(self, taker: KVFormat | None = None) -> int:
        """What others than ``taker`` could give up, at most."""
        others = [store for store in self._by_dtype.values() if store.fmt != taker]
        blocks = sum(store.manager.idle_blocks() * store.fmt.block_bytes for store in others)
        return blocks + sum(map(self.shared.size, self._idle(taker)))

    def _make_room(self, num_bytes: int) -> None:
        """Blocks that nobody uses leave, then calibrations that nobody reads."""
        before = self._unused_bytes
        self._give_back(None, num_bytes)
        self._drop_idle(num_bytes - (self._unused_bytes - before))

    # What policies read of all sequences ----------------------------------------------------------------------------

    def _idle(self, taker: KVFormat | None = None) -> Iterator[str]:
        """Names that nobody reads, and no kept page needs; ``taker``: nor who asks for blocks."""
        for name in self.shared.idle():
            stores = self._readers_of(name)
            if all(store.fmt != taker and self._is_idle(store) for store in stores):
                yield name

    def _readers_of(self, name: str) -> list[Store]:
        return [store for store in self._by_dtype.values() if name in store.reads]

    def _is_idle(self, store: Store) -> bool:
        return self.shared.is_idle(store.reads) and store.manager.idle_blocks() == store.manager.pool.num_blocks

    def _drop_idle(self, num_bytes: int, taker: KVFormat | None = None) -> None:
        """What nobody reads leaves, what was left longest ago first: until so many bytes are free, or no more can be.

        Prefixes that were encoded by it leave too: what is read when it comes again may have been calibrated anew.
        """
        enough = self._unused_bytes + num_bytes
        for name in self._idle(taker):
            if self._unused_bytes >= enough:
                return
            for store in self._readers_of(name):
                self._empty(store, store.manager.pool.num_blocks)
                assert store.codes is not None
                store.codes.forget()
                self._drop(store.fmt.dtype)
            self._drop(name)

    def _drop(self, name: str) -> None:
        num_bytes = self.shared.size(name)
        self.shared.drop(name)
        self._state_lease.resize(self._state_lease.num_bytes - num_bytes)

    def _empty(self, store: Store, num_blocks: int) -> int:
        """That many unused blocks leave a store, or all; returns their bytes."""
        gone = store.manager.shrink(num_blocks)
        store.run_copies()  # noted copies may read pages that have just become free: before their bytes go
        store.storage.release_blocks(gone)
        before = self._lease.num_bytes
        self._lease.resize(sum(one.leased_bytes for one in self))
        return before - self._lease.num_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes leased for what policies remember of sequences."""
        return self._state_lease.num_bytes - self.shared.num_bytes

    @property
    def remembered_bytes(self) -> int:
        """The same, and what they read of all sequences."""
        return self._state_lease.num_bytes

    @property
    def _unused_bytes(self) -> int:
        return self.total_bytes - sum(store.counted_bytes for store in self) - self._state_lease.num_bytes

    def _give_back(self, taker: KVFormat | None, num_bytes: int) -> None:
        for store in self._by_dtype.values():
            if num_bytes > 0 and store.fmt != taker:
                num_bytes -= self._empty(store, -(-num_bytes // store.fmt.block_bytes))

    def growable(self, taker: KVFormat) -> int:
        """Blocks that ``take`` could lease now, at most."""
        unused = self._unused_bytes - self._by_dtype[taker.dtype].first_bytes + self._idle_bytes(taker)
        return max(0, unused) // taker.block_bytes


def _none(method: str) -> Learned:
    raise ConfigError(f"{method} was not calibrated for this model")


def _has_slack(total_bytes: int) -> bool:
    """Whether stores of so many bytes may ask for huge pages."""
    return total_bytes >= MIN_HUGE_PAGES * HUGE_BYTES


@dataclass(frozen=True, slots=True)
class _Growth:
    """One pool's way to the common lease."""

    stores: Stores
    fmt: KVFormat

    def grow(self, num_blocks: int, last: bool) -> int:
        return self.stores.take(self.fmt, num_blocks, last)

    def growable(self) -> int:
        return self.stores.growable(self.fmt)
