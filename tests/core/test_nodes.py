"""Memory nodes of false machines: what is read, and where threads belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.core.nodes import Node, home_of, nodes_of, numbers, read_nodes

GIB = 1 << 30


def machine(root: Path, nodes: dict[int, tuple[str, int, int]]) -> Path:
    """node: (CPUs, GiB, free GiB)."""
    for number, (cpus, total, free) in nodes.items():
        folder = root / f"sys/devices/system/node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
        lines = (("MemTotal:", total), ("MemFree:", free))
        (folder / "meminfo").write_text("".join(f"Node {number} {name} {size << 20} kB\n" for name, size in lines))
    (root / "sys/devices/system/node/possible").write_text("0-9\n")
    return root


def test_nodes_are_read(tmp_path: Path) -> None:
    root = machine(tmp_path, {10: ("8-15", 32, 5), 0: ("0-3,16-19", 64, 7), 2: ("", 128, 100), 3: ("20-23", 0, 0)})
    nodes = read_nodes(root)
    assert [node.number for node in nodes] == [0, 2, 10], "in order, and one without memory is none"
    assert nodes[0] == Node(0, frozenset({0, 1, 2, 3, 16, 17, 18, 19}), 64 * GIB, 7 * GIB)
    assert nodes[1].cpus == frozenset()
    assert [node.number for node in nodes_of(nodes, {3, 9})] == [0, 10]
    assert nodes_of(nodes, range(20, 24)) == []


def test_a_system_that_says_nothing_has_no_nodes(tmp_path: Path) -> None:
    assert read_nodes(tmp_path) == []
    assert home_of([], {0, 1}, 1) is None


def test_this_machine_says_where_its_cpus_are() -> None:
    nodes = read_nodes()
    assert all(0 <= node.free_bytes <= node.total_bytes for node in nodes)
    assert len({cpu for node in nodes for cpu in node.cpus}) == sum(len(node.cpus) for node in nodes)


@pytest.mark.parametrize(
    ("cpus", "threads", "home"),
    [
        (range(32), 16, 1),  # both have as many CPUs; this one more free memory
        (range(32), 17, None),  # no node has so many: pages go on both in turn
        (range(20), 8, 0),  # of node 1 only four may be used
        (range(16), 8, None),  # all on one node already
        (range(20), 4, 1),
    ],
)
def test_threads_that_fit_beside_a_node_stay_there(tmp_path: Path, cpus: range, threads: int, home: int | None) -> None:
    nodes = read_nodes(machine(tmp_path, {0: ("0-15", 64, 10), 1: ("16-31", 64, 50), 2: ("", 256, 200)}))
    found = home_of(nodes, cpus, threads)
    assert (found and found.number) == home


@pytest.mark.parametrize(("text", "found"), [("0-2,7\n", {0, 1, 2, 7}), ("5", {5}), ("", set()), ("a-3", set())])
def test_lists_of_the_kernel(text: str, found: set[int]) -> None:
    assert numbers(text) == found
