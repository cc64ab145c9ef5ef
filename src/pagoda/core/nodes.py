"""Memory nodes (NUMA): which CPUs lie beside which memory, and where threads and pages belong where there are several.

    node 0: CPUs 0-15, memory  ══ far ══  node 1: CPUs 16-31, memory

A page lies on the node of the thread that touched it first, unless told otherwise. Weights are written by one thread,
so all would lie on one node: half of the threads would read from afar, and one node's memory would serve all. So:

* Threads that fit beside one node stay on it, and pages come to lie there by themselves.
* Else pages of weights and KV lie on the nodes in turn (`kernels.memory.spread`): all nodes' memory is read at once.

What others do: llama.cpp places nothing unless told to (``--numa distribute``), vLLM runs a process for each node,
OpenVINO keeps text generation on one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .system_files import read_text


@dataclass(frozen=True, slots=True)
class Node:
    """A node that has memory, and the CPUs beside it (none: memory behind a bus, which no thread is near to)."""

    number: int
    cpus: frozenset[int]
    total_bytes: int
    free_bytes: int


def read_nodes(root: str | Path = "/") -> list[Node]:
    """The machine's nodes in ascending order; none where the system does not say."""
    found = []
    for folder in Path(root).glob("sys/devices/system/node/node[0-9]*"):
        sizes = _sizes(read_text(folder / "meminfo"))
        if sizes.get("MemTotal", 0) > 0 and folder.name[4:].isdigit():
            cpus = numbers(read_text(folder / "cpulist"))
            found.append(Node(int(folder.name[4:]), cpus, sizes["MemTotal"], sizes.get("MemFree", 0)))
    return sorted(found, key=lambda node: node.number)


def nodes_of(nodes: Iterable[Node], cpus: Iterable[int]) -> list[Node]:
    """Those beside which some of these CPUs are."""
    some = frozenset(cpus)
    return [node for node in nodes if node.cpus & some]


def home_of(nodes: Sequence[Node], cpus: Iterable[int], num_threads: int) -> Node | None:
    """The node on which so many threads, which may run on ``cpus``, should stay: of those with as many of these CPUs,
    the one with the most free memory. None where none has, or where there is one node only.
    """
    some = frozenset(cpus)
    near = nodes_of(nodes, some)
    roomy = [node for node in near if len(node.cpus & some) >= num_threads]
    return max(roomy, key=lambda node: node.free_bytes) if len(near) > 1 and roomy else None


def cores_of(cpus: Iterable[int], root: str | Path = "/") -> int:
    """Cores that these CPUs belong to: two hardware threads of one core count once. CPUs where the system is silent."""
    topology = Path(root) / "sys/devices/system/cpu"
    siblings = (numbers(read_text(topology / f"cpu{cpu}/topology/thread_siblings_list")) | {cpu} for cpu in cpus)
    return len({min(core) for core in siblings})


def numbers(text: str) -> frozenset[int]:
    """``0-3,8`` as the kernel writes lists of CPUs and nodes; empty for anything else."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return frozenset()
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _sizes(text: str) -> dict[str, int]:
    """``{name: bytes}`` from lines ``Node 0 MemTotal:  123 kB``."""
    fields = [line.split() for line in text.splitlines()]
    return {f[2].rstrip(":"): int(f[3]) * 1024 for f in fields if len(f) == 5 and f[3].isdecimal() and f[4] == "kB"}
