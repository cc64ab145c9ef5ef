"""The ledger: every long-lived allocation is a lease, and the leases never add up to more than the budget.

    budget   |<-------------------------------- total_bytes -------------------------------->|
    leases   | runtime | weights           | kv                    | activations | … |  free   |

A lease is a promise, not a measurement: it is the most that its owner may touch. What is really in memory is its
``resident`` figure; ``reconcile`` compares those with what the kernel says.

Some leases are held for comfort: free pages, cached prefixes. Their owner says how to give bytes back (``reclaim``),
and a lease that finds no room takes from those of its own priority and below, the lowest first, before it is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..core.errors import BudgetError, ConfigError
from ..core.units import format_bytes

# The order in which tables list the accounts. Other names are accepted, and come after these.
ACCOUNTS = (
    "runtime",
    "weights",
    "tokenizer",
    "grammars",
    "kv",
    "policies",
    "activations",
    "staging",
    "adapters",
    "cache",
    "server",
)

DRIFT_BYTES = 8 << 20
"""By how much a process may be larger than the one that was refused before it: pages of libraries that happen to be in
memory. Four starts of `pagoda run` differed by 1 MiB.
"""
SPARE, REQUIRED = 0, 1
"""Priorities: what is kept because there is room for it, and what its owner cannot work without."""

Reclaim = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Need:
    """One line of a plan: so many bytes of an account, and what for."""

    account: str
    num_bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class AccountReport:
    """One account now. ``resident_bytes``: what the owners say is in memory; ``peak_bytes``: the most ever leased."""

    account: str
    leased_bytes: int
    resident_bytes: int
    peak_bytes: int
    leases: tuple[tuple[str, int], ...]
    """``(what, leased bytes)`` of each lease, largest first."""


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """The whole ledger at one moment."""

    total_bytes: int
    leased_bytes: int
    peak_bytes: int
    accounts: tuple[AccountReport, ...]

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.leased_bytes

    @property
    def resident_bytes(self) -> int:
        return sum(account.resident_bytes for account in self.accounts)


class Lease:
    """Bytes granted by the ledger until ``release`` (or the end of a ``with``). Made by ``Ledger.lease`` only."""

    __slots__ = ("_ledger", "_num_bytes", "_resident", "account", "asks", "maps_file", "priority", "reclaim", "what")

    def __init__(
        self, ledger: Ledger, account: str, num_bytes: int, what: str, resident: Callable[[], int] | None, priority: int
    ) -> None:
        self._ledger: Ledger | None = ledger
        self.account, self.what, self.priority = account, what, priority
        self._num_bytes, self._resident = num_bytes, resident
        self.reclaim: Reclaim | None = None
        self.asks = True
        """Whether growth asks others to give way; else it takes what is free, and somebody calls ``Ledger.relieve``."""
        self.maps_file = False
        """Whether what is resident of it are pages of a file, which the kernel counts with those of libraries."""

    @property
    def num_bytes(self) -> int:
        """Bytes granted; 0 once released."""
        return self._num_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory, as the owner counts them; the whole lease where the owner gave no counter."""
        return self._num_bytes if self._resident is None or self._ledger is None else int(self._resident())

    def resize(self, num_bytes: int) -> None:
        """Changes the lease to ``num_bytes``. Raises BudgetError, and keeps the old size, if growth does not fit."""
        assert self._ledger is not None, f"resize of a released lease: {self.account}, {self.what}"
        self._ledger._change(self, num_bytes)

    def try_resize(self, num_bytes: int) -> bool:
        """As ``resize``, but says False instead of raising."""
        try:
            self.resize(num_bytes)
        except BudgetError:
            return False
        return True

    def release(self) -> None:
        """Gives every byte back. A second call does nothing."""
        if self._ledger is not None:
            self._ledger._drop(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Lease({self.account}, {format_bytes(self._num_bytes)}, {self.what!r})"


class Ledger:
    """Grants leases under one total. Safe from several threads.

    ``reason`` says where the total came from (``--memory 2GiB``, cgroup limit, …) and is part of every refusal.
    """

    def __init__(self, total_bytes: int, *, reason: str = "") -> None:
        if isinstance(total_bytes, bool) or not isinstance(total_bytes, int) or total_bytes <= 0:
            raise ConfigError(f"a memory budget is a positive whole number of bytes, got {total_bytes!r}")
        self.total_bytes, self.reason = total_bytes, reason
        self.reclaimed_bytes = 0  # given up for others, since the start
        self._gathers = False
        self._lock, self._reclaiming = threading.Lock(), threading.Lock()
        self._leases: list[Lease] = []
        self._leased: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        self._leased_total = self._peak_total = 0

    @property
    def free_bytes(self) -> int:
        """Bytes that no lease holds."""
        return self.total_bytes - self._leased_total

    @property
    def leased_bytes(self) -> int:
        """Bytes that leases hold."""
        return self._leased_total

    def leased_by(self, account: str) -> int:
        """Bytes that the leases of one account hold."""
        return self._leased.get(account, 0)

    def mapped_bytes(self) -> int:
        """Resident bytes of leases whose owners map files."""
        with self._lock:
            leases = [lease for lease in self._leases if lease.maps_file]
        return sum(lease.resident_bytes for lease in leases)

    def lease(
        self,
        account: str,
        num_bytes: int,
        what: str,
        resident: Callable[[], int] | None = None,
        *,
        priority: int = REQUIRED,
        reclaim: Reclaim | None = None,
    ) -> Lease:
        """Takes ``num_bytes`` of the budget. ``resident`` counts what of it is in memory (called at reports only).

        ``reclaim(n)`` shrinks the lease by ``n`` bytes, or as near as it can, and returns by how many; it may be called
        from any thread that leases, and never while another reclaim is under way.
        Raises BudgetError, with the numbers and the nearest budget that can, if that much is neither free nor given up.
        """
        lease = Lease(self, account, 0, what, resident, priority)
        lease.reclaim = reclaim
        self._reclaim_for(lease, num_bytes)
        with self._lock:
            self._book(lease, num_bytes)
            self._leases.append(lease)
        return lease

    def try_lease(
        self,
        account: str,
        num_bytes: int,
        what: str,
        resident: Callable[[], int] | None = None,
        *,
        priority: int = REQUIRED,
        reclaim: Reclaim | None = None,
    ) -> Lease | None:
        """As ``lease``, but None instead of an error where it does not fit."""
        try:
            return self.lease(account, num_bytes, what, resident, priority=priority, reclaim=reclaim)
        except BudgetError:
            return None

    def gather(self) -> None:
        """Until ``require`` is asked, leases are noted though they exceed the total: those of what is there already,
        or has to be read before the sum of all needs can be told, all of it small.
        """
        self._gathers = True

    def require(self, needs: Iterable[Need]) -> None:
        """Raises BudgetError unless all ``needs`` fit together, beside what is leased; nothing more is leased.

        Asked before anything is loaded, so that the refusal names the whole sum and not the first thing that failed:
        the budget that it names is enough when it is said to another process.
        """
        wanted, gathered, self._gathers = list(needs), self._gathers, False
        total = sum(need.num_bytes for need in wanted)
        if total > self.free_bytes and self._reclaiming.acquire(blocking=False):
            try:
                self._reclaim(total - self.free_bytes, REQUIRED, None)
            finally:
                self._reclaiming.release()
        if total > self.free_bytes:
            parts = ", ".join(f"{need.what} {format_bytes(need.num_bytes)}" for need in wanted)
            margin = DRIFT_BYTES if gathered else 0
            raise BudgetError(self._refusal(total, f"this needs {format_bytes(total)} ({parts})", margin))

    def report(self) -> LedgerReport:
        """Every account with any history. Owners' counters are called outside the lock: they may lease, or block."""
        with self._lock:
            leases, peaks = list(self._leases), dict(self._peak)
            leased_total, peak_total = self._leased_total, self._peak_total
        names = sorted(peaks, key=lambda name: (ACCOUNTS.index(name) if name in ACCOUNTS else len(ACCOUNTS), name))
        accounts = tuple(_account_report(name, leases, peaks[name]) for name in names)
        return LedgerReport(self.total_bytes, leased_total, peak_total, accounts)

    def set_total(self, total_bytes: int, *, reason: str = "") -> None:
        """Changes the budget; what leases can give up is given up first where it became smaller.

        Raises BudgetError with the nearest budget that can, and the budget is what it was, if leases need more.
        """
        assert total_bytes > 0, f"a budget of {total_bytes} bytes"
        with self._reclaiming:
            self._reclaim(self._leased_total - total_bytes, REQUIRED, None)
        with self._lock:
            if self._leased_total > total_bytes:
                held = ", ".join(f"{name} {format_bytes(num)}" for name, num in self._leased.items() if num)
                raise BudgetError(
                    f"a budget of {format_bytes(total_bytes)} is less than what is in use ({held}); the nearest budget "
                    f"that can is {format_bytes_up(self._leased_total)}"
                )
            self.total_bytes, self.reason = total_bytes, reason

    def relieve(self, num_bytes: int) -> None:
        """Sees to it that so many bytes are free, as far as spare ones are given back for them. May block as long as
        their owners are busy.
        """
        with self._reclaiming:
            self._reclaim(num_bytes - self.free_bytes, SPARE, None)

    def _reclaim_for(self, lease: Lease, num_bytes: int) -> None:
        """Asks others to give way where ``lease`` would not fit with ``num_bytes``. One reclaim at a time: who comes
        while another is under way (perhaps waiting for this very thread) takes its chance with what is free.
        """
        missing = num_bytes - lease.num_bytes - self.free_bytes
        if missing <= 0 or not lease.asks or self._gathers or not self._reclaiming.acquire(blocking=False):
            return
        try:
            self._reclaim(missing, lease.priority, lease)
        finally:
            self._reclaiming.release()

    def _reclaim(self, missing: int, priority: int, lease: Lease | None) -> None:
        with self._lock:
            givers = [one for one in self._leases if one.reclaim and one is not lease and one.priority <= priority]
        for giver in sorted(givers, key=lambda one: one.priority):
            if missing <= 0:
                return
            assert giver.reclaim is not None
            given = giver.reclaim(missing)
            self.reclaimed_bytes += given
            missing -= given

    def _change(self, lease: Lease, num_bytes: int) -> None:
        self._reclaim_for(lease, num_bytes)
        with self._lock:
            self._book(lease, num_bytes)

    def _drop(self, lease: Lease) -> None:
        with self._lock:
            if lease._ledger is not None:
                self._book(lease, 0)
                self._leases.remove(lease)
                lease._ledger = None

    def _book(self, lease: Lease, num_bytes: int) -> None:
        """Sets the lease to ``num_bytes`` and keeps the sums; the lock is held."""
        assert isinstance(num_bytes, int), f"bytes are ints: {num_bytes!r} for {lease.account}"
        assert num_bytes >= 0, f"negative lease: {num_bytes} for {lease.account}"
        more = num_bytes - lease._num_bytes
        if more > 0 and self._leased_total + more > self.total_bytes and not self._gathers:
            raise BudgetError(self._refusal(more, f"{lease.what} ({lease.account}) needs {format_bytes(more)} more"))
        lease._num_bytes = num_bytes
        self._leased_total += more
        self._leased[lease.account] = self._leased.get(lease.account, 0) + more
        self._peak[lease.account] = max(self._peak.get(lease.account, 0), self._leased[lease.account])
        self._peak_total = max(self._peak_total, self._leased_total)

    def _refusal(self, more: int, need: str, margin: int = 0) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        held = ", ".join(f"{name} {format_bytes(num)}" for name, num in self._leased.items() if num) or "nothing"
        nearest = self._leased_total + more + margin
        free = format_bytes(max(0, self.free_bytes))
        return (
            f"{need}, but {free} of the {format_bytes(self.total_bytes)} budget{reason} "
            f"are free (held: {held}); the nearest budget that can is {format_bytes_up(nearest)}"
        )


def format_bytes_up(num_bytes: int) -> str:
    """Whole MiB, rounded up, so that the text typed back as a budget is enough: ``1701 MiB``."""
    return f"{-(-num_bytes >> 20) if num_bytes >= 0 else 0}MiB"


def _account_report(name: str, leases: list[Lease], peak_bytes: int) -> AccountReport:
    mine = sorted((lease for lease in leases if lease.account == name), key=lambda lease: -lease.num_bytes)
    return AccountReport(
        account=name,
        leased_bytes=sum(lease.num_bytes for lease in mine),
        resident_bytes=sum(lease.resident_bytes for lease in mine),
        peak_bytes=peak_bytes,
        leases=tuple((lease.what, lease.num_bytes) for lease in mine),
    )
