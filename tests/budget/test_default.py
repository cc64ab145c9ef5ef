from __future__ import annotations

import pytest

from pagoda.budget import MachineProbe, default_budget
from pagoda.core.errors import BudgetError, ConfigError
from pagoda.core.units import GIB, MIB

from .conftest import Build
from .test_cgroup import v2


def test_nothing_said_means_what_is_left_minus_a_margin(machine: Build) -> None:
    budget = default_budget(None, machine())
    room = 20 * GIB + 300 * MIB
    assert budget.total_bytes == room - room // 20
    assert "MemAvailable + own RSS 20.3 GiB minus a margin of 1.01 GiB" in budget.reason


def test_a_small_machine_keeps_the_floor_of_the_margin(machine: Build) -> None:
    files = v2("/app", app={"memory_max": str(GIB), "memory_current": str(200 * MIB)})
    assert default_budget(None, machine(files)).total_bytes == GIB - 256 * MIB


def test_a_machine_without_room_says_so(machine: Build) -> None:
    files = v2("/app", app={"memory_max": str(GIB), "memory_current": str(GIB)})
    with pytest.raises(BudgetError, match="leaves 200 MiB to this process, no more than the margin of 256 MiB"):
        default_budget(None, machine(files))


@pytest.mark.parametrize(
    ("memory", "num_bytes"),
    [("2GiB", 2 * GIB), ("512M", 512 * MIB), (3 * GIB, 3 * GIB), (1, 1), ("1048576", MIB), ("1.5 GB", 1_500_000_000)],
)
def test_a_size_is_taken_as_stated(machine: Build, memory: str | int, num_bytes: int) -> None:
    budget = default_budget(memory, machine())
    assert budget.total_bytes == num_bytes
    assert budget.reason == f"stated: {memory}"


@pytest.mark.parametrize(("memory", "share"), [(0.5, 2), ("0.5", 2), ("50%", 2), (1.0, 1), ("100%", 1), (" .25 ", 4)])
def test_a_share_is_of_the_total_not_of_what_is_free(machine: Build, memory: str | float, share: int) -> None:
    assert default_budget(memory, machine(available_kib=1)).total_bytes == 24 * GIB // share


def test_a_share_is_of_the_cgroup_where_that_is_smaller(machine: Build) -> None:
    budget = default_budget("0.5", machine(v2("/app", app={"memory_max": str(4 * GIB)})))
    assert budget.total_bytes == 2 * GIB
    assert budget.reason.startswith("50% of 4.00 GiB, cgroup v2 ")


@pytest.mark.parametrize("memory", ["1.5", 1.5, 0.0, -0.5, "0.0", "150%", "0%", float("nan")])
def test_a_share_lies_between_0_and_1(machine: Build, memory: str | float) -> None:
    with pytest.raises(ConfigError, match=r"memory .* accepted: .*2GiB.*0.5, 50%"):
        default_budget(memory, machine())


@pytest.mark.parametrize("memory", ["plenty", "", "-2GiB", "x%", 0, "0", "0GiB", True, -1])
def test_what_is_neither_size_nor_share_is_refused(machine: Build, memory: str | int) -> None:
    with pytest.raises(ConfigError, match="memory .* accepted: .*2GiB"):
        default_budget(memory, machine())


def test_more_than_there_ever_is_cannot_be_promised(machine: Build) -> None:
    with pytest.raises(BudgetError, match="is 64.0 GiB, but the machine has 24.0 GiB; ask for at most 24576MiB"):
        default_budget("64GiB", machine())
    files = v2("/app", app={"memory_max": str(4 * GIB)})
    with pytest.raises(BudgetError, match="cgroup v2 .* has 4.00 GiB"):
        default_budget("8GiB", machine(files))


def test_the_real_machine_leaves_something() -> None:
    assert 0 < default_budget(None).total_bytes < MachineProbe().mem_total()
