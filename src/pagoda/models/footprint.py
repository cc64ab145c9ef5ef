"""Leases for what loading brings into the process: weights, the tokenizer, and libraries that only some models need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pagoda.budget.ledger import Lease, Ledger, Need
from pagoda.budget.probe import MachineProbe

GGUF_HEADER_BYTES = 4 << 20  # a vocabulary of 150,000 with merges; the lease becomes what it really took


def tokenizer_bytes(file_bytes: int) -> int:
    """Of a tokenizer in memory. Measured: private memory grows by 8 to 10 times the size of tokenizer.json (GPT-2,
    Mistral), and a little at use.
    """
    return 10 * file_bytes + (6 << 20)


class Footprint:
    """The leases of one model; without a ledger, none. ``release`` gives all of them back, at any moment."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger, self._leases = ledger, list[Lease]()
        self._closers: list[Callable[[], None]] = []

    def lease(self, account: str, num_bytes: int, what: str, resident: Callable[[], int] | None = None) -> Lease | None:
        """A lease that stays until ``release``. Raises BudgetError."""
        if self._ledger is None:
            return None
        self._leases.append(self._ledger.lease(account, num_bytes, what, resident))
        return self._leases[-1]

    def require(self, needs: Iterable[Need]) -> None:
        """As ``Ledger.require``."""
        if self._ledger is not None:
            self._ledger.require(needs)

    @contextmanager
    def measured(self, account: str, num_bytes: int, what: str) -> Iterator[None]:
        """Leases an estimate; what private memory really grew by inside the ``with`` is the lease's resident figure.

        A lease that turns out too small is enlarged. Raises BudgetError.
        """
        grown = 0
        lease = self.lease(account, num_bytes, what, lambda: grown)
        before = _private_bytes(self._ledger)
        yield
        grown = max(0, _private_bytes(self._ledger) - before)
        if lease is not None and grown > num_bytes:
            lease.resize(grown)

    @contextmanager
    def passing(self, account: str, num_bytes: int, what: str) -> Iterator[None]:
        """A lease for the duration of the ``with``."""
        if self._ledger is None:
            yield
            return
        with self._ledger.lease(account, num_bytes, what):
            yield

    def at_release(self, close: Callable[[], None]) -> None:
        """Called when the leases go back: what holds their bytes lets them go."""
        self._closers.append(close)

    @property
    def leased_bytes(self) -> int:
        """Of all its leases."""
        return sum(lease.num_bytes for lease in self._leases)

    def leased_by(self, account: str) -> int:
        """Of its leases of one account."""
        return sum(lease.num_bytes for lease in self._leases if lease.account == account)

    def release(self, *, but: str | None = None) -> None:
        """Gives every lease back, those of account ``but`` excepted. Calling it again does no harm."""
        while self._closers:
            self._closers.pop()()
        for lease in self._leases:
            if lease.account != but:
                lease.release()
        self._leases = [lease for lease in self._leases if lease.account == but]


def _private_bytes(ledger: Ledger | None) -> int:
    return 0 if ledger is None else MachineProbe().private_rss()
