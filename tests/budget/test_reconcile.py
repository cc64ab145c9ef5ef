from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pagoda.budget import Ledger, lease_runtime, reconcile
from pagoda.core.errors import BudgetError
from pagoda.core.units import GIB, MIB

from .conftest import Build
from .test_cgroup import v2


def test_what_no_account_explains_is_a_line_of_its_own(machine: Build) -> None:
    probe = machine(rss_kib=300 * 1024)
    ledger = Ledger(2 * GIB)
    runtime = ledger.lease("runtime", 250 * MIB, "interpreter", resident=lambda: 200 * MIB)
    ledger.lease("kv", GIB, "pool", resident=lambda: 90 * MIB)
    result = reconcile(ledger, probe)
    assert (result.rss_bytes, result.unaccounted_bytes) == (300 * MIB, 10 * MIB)
    assert result.unaccounted_share == pytest.approx(1 / 30)
    data = json.loads(json.dumps(result.as_dict()))
    assert data["unaccounted_bytes"] == 10 * MIB
    assert data["accounts"]["kv"] == {
        "leased_bytes": GIB,
        "resident_bytes": 90 * MIB,
        "peak_bytes": GIB,
        "leases": [{"what": "pool", "bytes": GIB}],
    }
    assert data["free_bytes"] == 2 * GIB - GIB - 250 * MIB
    runtime.release()
    assert reconcile(ledger, probe).unaccounted_bytes == 210 * MIB


@pytest.mark.parametrize("peak", [{"memory_peak": str(GIB)}, {}])
def test_the_tightest_cgroup_stands_beside_the_process(machine: Build, peak: dict[str, str]) -> None:
    assert reconcile(Ledger(GIB), machine()).as_dict()["cgroup"] is None
    app = {"memory_max": str(2 * GIB), "memory_current": str(700 * MIB), "memory_stat": f"active_file {100 * MIB}\n"}
    limits = {"memory_max": str(8 * GIB), "memory_current": str(710 * MIB)}
    probe = machine(v2("/slice/app", slice=limits, slice__app=app | peak))
    group = json.loads(json.dumps(reconcile(Ledger(GIB), probe).as_dict()))["cgroup"]
    assert group.pop("path").endswith("/slice/app")
    assert group == {
        "version": 2,
        "limit_bytes": 2 * GIB,
        "usage_bytes": 600 * MIB,
        "current_bytes": 700 * MIB,
        "peak_bytes": GIB if peak else None,
    }


def test_owners_that_claim_too_much_show_as_negative(machine: Build) -> None:
    ledger = Ledger(GIB)
    ledger.lease("weights", 400 * MIB, "llama")
    result = reconcile(ledger, machine(rss_kib=300 * 1024))
    assert result.unaccounted_bytes == -100 * MIB
    assert result.unaccounted_share == pytest.approx(1 / 3)


def test_the_runtime_is_what_the_process_already_is(machine: Build) -> None:
    probe = machine(rss_kib=300 * 1024, anon_kib=200 * 1024)
    ledger = Ledger(GIB)
    lease = lease_runtime(ledger, probe, allowance_bytes=50 * MIB)
    assert (lease.num_bytes, lease.resident_bytes) == (350 * MIB, 300 * MIB)
    machine(rss_kib=420 * 1024, anon_kib=290 * 1024)  # 30 MiB of library code came in, and 90 MiB of somebody's data
    assert lease.resident_bytes == 330 * MIB
    with pytest.raises(BudgetError, match="interpreter and libraries"):
        lease_runtime(Ledger(100 * MIB), probe)


def test_the_accounts_of_a_real_process_add_up() -> None:
    """A process that holds 128 MiB under a lease and 1 MiB without: less than 5 % stays unexplained."""
    code = (
        "import mmap\n"
        "from pagoda.budget import Ledger, lease_runtime, reconcile\n"
        "ledger = Ledger(1 << 30); lease_runtime(ledger)\n"
        "pool = mmap.mmap(-1, 512 << 20); touched = 128 << 20; pool.write(b'x' * touched)\n"
        "loose = bytearray(b'y' * (1 << 20))\n"
        "ledger.lease('kv', 512 << 20, 'pool', resident=lambda: touched)\n"
        "result = reconcile(ledger); print(result.unaccounted_share, result.unaccounted_bytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    share, num_bytes = done.stdout.split()
    assert float(share) < 0.05, f"{int(num_bytes) / MIB:.1f} MiB"
