from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagoda.budget.ledger import DRIFT_BYTES, REQUIRED, SPARE, Lease, Ledger, Need, format_bytes_up
from pagoda.core.errors import BudgetError, ConfigError
from pagoda.core.units import GIB, MIB, parse_bytes


def test_leases_take_bytes_and_give_them_back() -> None:
    ledger = Ledger(100)
    weights = ledger.lease("weights", 60, "llama")
    with ledger.lease("kv", 30, "pool") as pool:
        assert (ledger.free_bytes, ledger.leased_bytes, ledger.leased_by("kv")) == (10, 90, 30)
        assert pool.num_bytes == 30
    assert (ledger.free_bytes, ledger.leased_by("kv"), pool.num_bytes) == (40, 0, 0)
    pool.release()
    weights.release()
    assert ledger.free_bytes == 100


def test_a_lease_that_does_not_fit_is_refused_with_the_numbers() -> None:
    ledger = Ledger(2 * GIB, reason="stated: 2GiB")
    ledger.lease("runtime", 300 * MIB, "interpreter and libraries")
    ledger.lease("weights", GIB, "llama")
    with pytest.raises(BudgetError) as caught:
        ledger.lease("kv", GIB, "page pool")
    message = str(caught.value)
    assert message == (
        "page pool (kv) needs 1.00 GiB more, but 724 MiB of the 2.00 GiB budget (stated: 2GiB) are free "
        "(held: runtime 300 MiB, weights 1.00 GiB); the nearest budget that can is 2348MiB"
    )
    assert ledger.leased_by("kv") == 0
    Ledger(parse_bytes("2348MiB")).require(
        [Need("runtime", 300 * MIB, "r"), Need("weights", GIB, "w"), Need("kv", GIB, "k")]
    )


def test_the_first_lease_of_all_can_be_too_large() -> None:
    with pytest.raises(BudgetError, match="held: nothing"):
        Ledger(10).lease("weights", 11, "llama")


def test_try_lease_says_none() -> None:
    ledger = Ledger(10)
    assert ledger.try_lease("kv", 11, "pool") is None
    lease = ledger.try_lease("kv", 10, "pool")
    assert lease is not None
    assert lease.num_bytes == 10


def test_resize_grows_shrinks_and_keeps_the_old_size_on_refusal() -> None:
    ledger = Ledger(100)
    lease = ledger.lease("kv", 40, "pool")
    lease.resize(100)
    lease.resize(10)
    with pytest.raises(BudgetError):
        lease.resize(101)
    assert not lease.try_resize(101)
    assert lease.try_resize(50)
    assert (lease.num_bytes, ledger.free_bytes) == (50, 50)
    assert ledger.report().accounts[0].peak_bytes == 100


def test_require_asks_for_everything_at_once_and_takes_nothing() -> None:
    ledger = Ledger(100 * MIB)
    needs = [Need("weights", 80 * MIB, "weights"), Need("kv", 40 * MIB, "one sequence of 4096 tokens")]
    with pytest.raises(BudgetError, match=r"needs 120 MiB \(weights 80.0 MiB, one sequence .* 40.0 MiB\).*120MiB"):
        ledger.require(needs)
    ledger.require(needs[:1])
    assert ledger.leased_bytes == 0


@pytest.mark.parametrize("total", [0, -1, 1.5, True, "2GiB"])
def test_a_ledger_has_a_positive_whole_total(total: object) -> None:
    with pytest.raises(ConfigError, match="positive whole number"):
        Ledger(total)  # type: ignore[arg-type]


def test_our_own_mistakes_are_assertions() -> None:
    ledger = Ledger(10)
    lease = ledger.lease("kv", 1, "pool")
    with pytest.raises(AssertionError, match="bytes are ints"):
        lease.resize(1.5)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="negative"):
        lease.resize(-1)
    lease.release()
    with pytest.raises(AssertionError, match="released lease: kv, pool"):
        lease.resize(1)


def test_the_report_lists_accounts_in_house_order_with_what_is_resident() -> None:
    ledger = Ledger(100)
    touched = [3]
    ledger.lease("kv", 20, "pool", resident=lambda: touched[0])
    ledger.lease("weights", 30, "llama")
    ledger.lease("zebra", 5, "own account")
    small = ledger.lease("weights", 10, "adapter of llama")
    touched[0] = 7
    report = ledger.report()
    assert [a.account for a in report.accounts] == ["weights", "kv", "zebra"]
    weights, kv, _ = report.accounts
    assert (weights.leased_bytes, weights.resident_bytes) == (40, 40)
    assert weights.leases == (("llama", 30), ("adapter of llama", 10))
    assert (kv.leased_bytes, kv.resident_bytes) == (20, 7)
    assert (report.leased_bytes, report.free_bytes, report.resident_bytes) == (65, 35, 52)
    small.release()
    after = ledger.report()
    assert (after.accounts[0].leased_bytes, after.accounts[0].peak_bytes, after.peak_bytes) == (30, 40, 65)


def test_a_released_lease_is_resident_nowhere_and_an_owner_may_lease_while_counting() -> None:
    ledger = Ledger(100)

    def count() -> int:
        ledger.lease("cache", 1, "taken while counting")
        return 4

    lease = ledger.lease("kv", 20, "pool", resident=count)
    assert ledger.report().resident_bytes == 4
    lease.release()
    assert lease.resident_bytes == 0
    assert repr(lease) == "Lease(kv, 0 B, 'pool')"


def test_bytes_rounded_up_are_enough_when_typed_back() -> None:
    for num_bytes in (0, 1, MIB, MIB + 1, 3 * GIB - 1):
        assert parse_bytes(format_bytes_up(num_bytes)) >= num_bytes


def test_many_threads_never_take_more_than_there_is() -> None:
    ledger, start, over = Ledger(50), threading.Barrier(8), []

    def work() -> None:
        start.wait()
        for _ in range(300):
            lease = ledger.try_lease("kv", 20, "pool")
            if ledger.leased_bytes > 50:
                over.append(ledger.leased_bytes)
            if lease is not None:
                lease.try_resize(30)
                lease.release()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
    assert over == []
    assert (ledger.free_bytes, ledger.report().accounts[0].leases) == (50, ())


class LedgerMachine(RuleBasedStateMachine):
    """Random leases against a plain list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(1000)
        self.held: list[tuple[Lease, str, int]] = []

    @rule(account=st.sampled_from(["weights", "kv", "staging"]), size=st.integers(0, 600))
    def take(self, account: str, size: int) -> None:
        free = 1000 - sum(num for *_, num in self.held)
        lease = self.ledger.try_lease(account, size, "x")
        assert (lease is not None) == (size <= free)
        if lease is not None:
            self.held.append((lease, account, size))

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 1 << 20), size=st.integers(0, 1200))
    def resize(self, pick: int, size: int) -> None:
        index = pick % len(self.held)
        lease, account, old = self.held[index]
        fits = sum(num for *_, num in self.held) - old + size <= 1000
        assert lease.try_resize(size) == (fits or size <= old)
        if fits:
            self.held[index] = (lease, account, size)

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 1 << 20))
    def release(self, pick: int) -> None:
        self.held.pop(pick % len(self.held))[0].release()

    @invariant()
    def the_sums_agree(self) -> None:
        assert self.ledger.leased_bytes == sum(num for *_, num in self.held) <= 1000
        for line in self.ledger.report().accounts:
            mine = [num for _, account, num in self.held if account == line.account]
            assert line.leased_bytes == self.ledger.leased_by(line.account) == sum(mine) <= line.peak_bytes
            assert [num for _, num in line.leases] == sorted(mine, reverse=True)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# Giving way ---------------------------------------------------------------------------------------------------------


def _spare(ledger: Ledger, num_bytes: int, *, keep: int = 0, priority: int = SPARE) -> Lease:
    """A lease that gives all but ``keep`` bytes back when asked."""

    def give(wanted: int) -> int:
        given = min(wanted, max(0, lease.num_bytes - keep))
        lease.resize(lease.num_bytes - given)
        return given

    lease = ledger.lease("cache", num_bytes, "spare", priority=priority, reclaim=give)
    return lease


def test_spare_leases_give_way_before_anybody_is_refused() -> None:
    ledger = Ledger(100)
    cache = _spare(ledger, 80, keep=30)
    weights = ledger.lease("weights", 60, "llama")
    assert (cache.num_bytes, weights.num_bytes, ledger.free_bytes, ledger.reclaimed_bytes) == (40, 60, 0, 40)
    weights.resize(70)
    assert cache.num_bytes == 30
    with pytest.raises(BudgetError, match="needs 1 B more"):
        weights.resize(71)
    assert (cache.num_bytes, weights.num_bytes) == (30, 70)


def test_the_lowest_priority_gives_first_and_nobody_gives_upwards() -> None:
    ledger = Ledger(100)
    required = _spare(ledger, 40, priority=REQUIRED)
    spare = _spare(ledger, 60)
    ledger.lease("weights", 30, "llama")
    assert (required.num_bytes, spare.num_bytes) == (40, 30)
    assert ledger.try_lease("kv", 40, "more pages", priority=SPARE) is None  # of 30 spare bytes; required ones stay
    assert required.num_bytes == 40


def test_who_asks_while_another_is_giving_takes_what_is_free() -> None:
    """Two owners that wait for each other would wait for ever: the second is refused instead."""
    ledger = Ledger(100)
    refused: list[bool] = []

    def give(wanted: int) -> int:
        refused.append(ledger.try_lease("other", 10, "asks meanwhile") is None)
        lease.resize(lease.num_bytes - wanted)
        return wanted

    lease = ledger.lease("cache", 100, "spare", priority=SPARE, reclaim=give)
    ledger.lease("weights", 20, "llama")
    assert refused == [True]


def test_requirements_and_smaller_budgets_ask_too() -> None:
    ledger = Ledger(100)
    cache = _spare(ledger, 90)
    ledger.require([Need("weights", 50, "llama")])
    assert cache.num_bytes == 50
    ledger.set_total(30, reason="stated: 30")
    assert (cache.num_bytes, ledger.free_bytes, ledger.total_bytes) == (30, 0, 30)
    ledger.lease("weights", 20, "llama")
    with pytest.raises(BudgetError, match=r"less than what is in use .*nearest budget that can is 1MiB"):
        ledger.set_total(10)
    assert ledger.total_bytes == 30
    ledger.set_total(200)
    assert ledger.free_bytes == 200 - ledger.leased_bytes


def test_a_gathering_ledger_notes_what_is_there_and_judges_the_sum() -> None:
    ledger = Ledger(100 * MIB)
    ledger.gather()
    ledger.lease("runtime", 150 * MIB, "interpreter")
    needs = [Need("weights", 50 * MIB, "weights"), Need("kv", 10 * MIB, "KV")]
    with pytest.raises(BudgetError, match=rf"0 B of the 100 MiB .* can is {210 + (DRIFT_BYTES >> 20)}MiB"):
        ledger.require(needs)
    with pytest.raises(BudgetError, match="nearest budget that can is 151MiB"):
        ledger.lease("kv", MIB, "more")
    enough = Ledger(210 * MIB)
    enough.gather()
    enough.lease("runtime", 150 * MIB, "interpreter")
    enough.require(needs)
    with pytest.raises(BudgetError):
        enough.lease("kv", 61 * MIB, "more")
