"""The stated memory as a thing: the ledger, what the machine says, and the two compared. No torch.

>>> from pagoda.budget import Ledger, MachineProbe, default_budget
"""

from __future__ import annotations

from .default import Budget, default_budget
from .heap import heap_bytes, trim_heap
from .ledger import AccountReport, Lease, Ledger, LedgerReport, Need
from .probe import MachineProbe
from .reconcile import Reconciliation, lease_runtime, reconcile

__all__ = [
    "AccountReport",
    "Budget",
    "Lease",
    "Ledger",
    "LedgerReport",
    "MachineProbe",
    "Need",
    "Reconciliation",
    "default_budget",
    "heap_bytes",
    "lease_runtime",
    "reconcile",
    "trim_heap",
]
