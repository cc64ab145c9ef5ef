"""The ledger against the kernel: do the accounts add up to what this process really uses?

``unaccounted = RSS - sum of resident``: allocator slack, temporaries of a running step, libraries that were loaded
after the runtime was measured. It is a line of its own, so that nobody has to guess where the rest went.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any

from ..core.units import MIB
from .cgroup import CgroupMemory
from .heap import trim_heap
from .ledger import Lease, Ledger, LedgerReport
from .probe import MachineProbe


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A ledger report beside the kernel's figures of the same moment. Bytes. ``cgroup``: the tightest group above the
    process, which counts what all in it hold; None where no group has a limit.
    """

    ledger: LedgerReport
    rss_bytes: int
    peak_rss_bytes: int
    cgroup: CgroupMemory | None = None

    @property
    def unaccounted_bytes(self) -> int:
        """Resident bytes that no account explains; negative where owners claim more than is there."""
        return self.rss_bytes - self.ledger.resident_bytes

    @property
    def unaccounted_share(self) -> float:
        """``|unaccounted| / RSS``; the promise is below 0.05."""
        return abs(self.unaccounted_bytes) / max(1, self.rss_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``stats()``, ``--json`` and metrics; every figure an int of bytes, but the share and what
        the cgroup is called.
        """
        report = self.ledger
        return {
            "total_bytes": report.total_bytes,
            "leased_bytes": report.leased_bytes,
            "free_bytes": report.free_bytes,
            "peak_leased_bytes": report.peak_bytes,
            "resident_bytes": report.resident_bytes,
            "rss_bytes": self.rss_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "unaccounted_bytes": self.unaccounted_bytes,
            "unaccounted_share": round(self.unaccounted_share, 4),
            "cgroup": None if self.cgroup is None else asdict(self.cgroup),
            "accounts": {
                line.account: {
                    "leased_bytes": line.leased_bytes,
                    "resident_bytes": line.resident_bytes,
                    "peak_bytes": line.peak_bytes,
                    "leases": [{"what": what, "bytes": num} for what, num in line.leases],
                }
                for line in report.accounts
            },
        }


def reconcile(ledger: Ledger, probe: MachineProbe | None = None) -> Reconciliation:
    """Reads ledger and kernel one after the other; a step running meanwhile moves the difference."""
    probe = probe or MachineProbe()
    report = ledger.report()
    return Reconciliation(report, probe.rss(), probe.peak_rss(), probe.tightest_cgroup())


# Code of libraries that is first touched when the first steps run: 20 MiB measured with torch 2.13 on x86-64, from the
# lease of the runtime to the end of the first batch of 16 prompts.
LATE_CODE_BYTES = 32 * MIB


def lease_runtime(
    ledger: Ledger, probe: MachineProbe | None = None, *, allowance_bytes: int = LATE_CODE_BYTES
) -> Lease:
    """The account ``runtime``: interpreter and libraries, measured before weights are read.

    Resident are the private bytes of that moment and the file pages of *now*: mapped code comes in as it is first run.
    Pages of files that leases map (`Lease.maps_file`) are those leases'.
    ``allowance_bytes`` is leased on top for that code. Raises BudgetError if the budget is smaller than the process is.
    """
    probe = probe or MachineProbe()
    gc.collect()  # what a closed engine left behind in this process is nobody's runtime
    trim_heap()
    private = probe.private_rss()
    return ledger.lease(
        "runtime",
        probe.rss() + allowance_bytes,
        "interpreter and libraries",
        resident=lambda: private + max(0, probe.file_rss() - ledger.mapped_bytes()),
    )
