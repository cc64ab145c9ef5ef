"""``pagoda serve`` in a memory cgroup at its budget + 5 %, under a mixed load of long prompts, with what goes wrong.

    python -m benchmarks.budget_soak FOLDER_OF_A_MODEL --memory 2GiB --seconds 600
    python -m benchmarks.budget_soak FOLDER_OF_A_MODEL --memory 2GiB --seconds 600 --trouble
    python -m benchmarks.budget_soak FOLDER_OF_A_MODEL ANOTHER … --memory 2GiB --seconds 600
    python -m benchmarks.budget_soak FOLDER_OF_A_MODEL --memory 600MiB --seconds 60 --serve --weights stream

``--trouble`` adds kept prefixes, in memory and on disk, and, for a quarter of the time each: a disk on which every
write ends early (RLIMIT_FSIZE stands for a full one); a file layer in which a fifth of all look-ups and a hundredth of
the writes fail and a tenth of what is read is wrong; ``kill -9`` in the middle of the load; a restart over the same
folder. Of several models a request asks for one by chance; where they do not fit together they come and go. Needs root
and a memory controller. Prints a JSON document; exit code 1 unless no process was killed for memory, the peak stayed
within the budget, and every request that was not cut off by our own ``kill -9`` was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from pagoda.budget.cgroup import _hierarchies
from pagoda.core.units import parse_bytes

LENGTHS = (30, 300, 1200, 2400)
OFFLOADED = ("offload", "quest(pages=0.25)+offload")
FAILING_DISK = """
import random, runpy
from pagoda.kv.tiers._files import Files

rng = random.Random(0)

def unreliable(name):
    real = getattr(Files, name)
    def work(self, *args):
        if rng.random() < (0.01 if name in ("write_whole", "make_folder") else 0.2):  # writing rests after an error
            raise OSError(5, "Input/output error")
        found = real(self, *args)
        if name == "read" and rng.random() < 0.1:
            at = rng.randrange(len(found))
            found = found[:at] + bytes([found[at] ^ 64]) + found[at + 1:]
        return found
    setattr(Files, name, work)

for name in ("read", "write_whole", "touch", "used_at", "remove", "exists", "make_folder"):
    unreliable(name)
runpy.run_module("pagoda", run_name="__main__")
"""
"""``pagoda`` over a disk that cannot be trusted."""


class Group:
    """A fresh memory cgroup below our own."""

    def __init__(self, limit_bytes: int) -> None:
        error: OSError | None = None
        for hierarchy in _hierarchies(Path("/")):
            self.folder = hierarchy.group / f"pagoda-soak-{os.getpid()}"
            self.peak_file = self.folder / ("memory.peak" if hierarchy.version == 2 else "memory.max_usage_in_bytes")
            limit = self.folder / ("memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes")
            try:
                self.folder.mkdir()
                limit.write_text(str(limit_bytes))
                return
            except OSError as caught:
                error = caught
        raise SystemExit(f"no memory cgroup can be made ({error}); run as root with the memory controller")

    def enter(self) -> None:
        """For ``preexec_fn``: the process that calls this is in the group from then on."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def measure(self, command: Sequence[str]) -> dict[str, Any]:
        """What ``command``, run in the group, prints as JSON, and the group's peak; the group is closed. Raises
        SystemExit where the command fails or is killed.
        """
        try:
            done = subprocess.run(command, preexec_fn=self.enter, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"rc {done.returncode}, killed for memory: {self.kills()}: {done.stderr[-2000:]}")
            found: dict[str, Any] = json.loads(done.stdout)
            return found | {"group_peak_bytes": int(self.peak_file.read_text()), "killed": self.kills()}
        finally:
            self.close()

    def kills(self) -> int:
        """Processes that the kernel ended for memory."""
        for name in ("memory.events", "memory.oom_control"):
            if (self.folder / name).exists():
                fields = dict(line.split()[:2] for line in (self.folder / name).read_text().splitlines())
                return int(fields.get("oom_kill", 0))
        return 0

    def close(self) -> None:
        for _ in range(100):
            try:
                self.folder.rmdir()
                return
            except OSError:  # the last process is still being taken apart
                time.sleep(0.1)


class Server:
    """``pagoda serve`` inside the group; none outlives the benchmark, however that ends."""

    def __init__(
        self, args: argparse.Namespace, group: Group, *extra: str, file_limit: int | None = None,
        launcher: str | None = None,
    ) -> None:  # fmt: skip
        def enter() -> None:
            group.enter()
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        start = ["-m", "pagoda"] if launcher is None else ["-c", launcher]
        command = [sys.executable, *start, "serve", *args.models, "--memory", args.memory, "--port", "0", "--json"]
        limits = ["--max-model-len", str(args.max_model_len), "--max-num-batched-tokens", "512", "--max-num-seqs", "16"]
        self.offloads = args.kv_offload and file_limit is None  # where nothing can be written, it could only refuse
        if self.offloads:
            limits += ["--kv-offload", args.kv_offload, "--kv-offload-dir", args.folder, "--kv-window", args.kv_window]
        self.process = subprocess.Popen(
            [*command, *limits, *args.serve, *extra],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=enter,
        )
        atexit.register(self.process.kill)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise SystemExit(f"the server did not start: {self.process.stderr.read()[-1000:]}")
        self.url = json.loads(line)["url"]

    def peak_rss(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(120)


async def load(server: Server, args: argparse.Namespace, seconds: float, seed: int) -> Counter[str]:
    """Requests of mixed lengths, a third of them going on from an earlier one, until the time is over."""
    rng, ends, seen = random.Random(seed), time.monotonic() + seconds, Counter[str]()
    told: list[list[int]] = []

    async def user(client: httpx.AsyncClient) -> None:
        while time.monotonic() < ends:
            ids = [rng.randrange(3, args.vocab) for _ in range(rng.choice(LENGTHS))]
            if told and rng.random() < 0.3:
                ids = rng.choice(told) + ids
            ids = ids[: args.max_model_len - 100]
            body = {
                "model": rng.choice(args.models),
                "prompt": ids,
                "max_tokens": rng.choice((8, 32, 96)),
                "temperature": 0,
                "ignore_eos": True,
                "kv": rng.choice(OFFLOADED) if server.offloads and rng.random() < 0.34 else "exact",
            }
            try:
                answer = await client.post("/v1/completions", json=body)
            except httpx.HTTPError as error:
                seen[f"cut off: {type(error).__name__}"] += 1
                await asyncio.sleep(0.2)
                continue
            seen[f"status {answer.status_code}"] += 1
            told.append(ids)
            del told[:-20]

    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        await asyncio.gather(*(user(client) for _ in range(args.at_once)))
    return seen


def phase(server: Server, args: argparse.Namespace, seconds: float, seed: int) -> dict[str, Any]:
    """One stretch of load on one server, and what the server says about it."""
    seen = asyncio.run(load(server, args, seconds, seed))
    stats = httpx.get(f"{server.url}/admin/stats", timeout=60).json()
    disk = stats.get("disk") or {}
    return {
        "answers": dict(seen), "peak_rss": server.peak_rss(), "peak_leased": stats["memory"]["peak_leased_bytes"],
        "loads": {one["id"]: one["num_loads"] for one in stats.get("models", ())},
        "preemptions": stats["queue"]["preemptions"], "restored_pages": disk.get("num_restored"),
        "disk_errors": disk.get("disk_num_errors"), "disk_corrupt": disk.get("disk_num_corrupt"),
        "disk_bytes": disk.get("used_bytes"), "host_hits": disk.get("host_num_hits"),
        "offload_read_bytes": (stats["kv"].get("offload") or {}).get("read_bytes"),
    }  # fmt: skip


async def kill_in_the_middle(server: Server, args: argparse.Namespace, seconds: float) -> Counter[str]:
    running = asyncio.create_task(load(server, args, seconds, 2))
    await asyncio.sleep(seconds * 0.8)
    server.stop(signal.SIGKILL)
    return await running


def soak(args: argparse.Namespace, group: Group) -> dict[str, Any]:
    if not args.trouble:
        server = Server(args, group)
        found = {"load": phase(server, args, args.seconds, 1)}
        server.stop()
        return found
    part, found = args.seconds / 4, {}
    keep = ("--kv-dir", f"{args.folder}/kept", "--disk", args.disk, "--kv-host", args.kv_host)
    server = Server(args, group, *keep, file_limit=4096)  # no record fits: every write ends early
    found["full disk"] = phase(server, args, part, 1)
    server.stop()
    server = Server(args, group, *keep, launcher=FAILING_DISK)
    found["failing disk"] = phase(server, args, part, 3)
    server.stop()
    server = Server(args, group, *keep)
    found["killed"] = {"answers": dict(asyncio.run(kill_in_the_middle(server, args, part)))}
    server = Server(args, group, *keep)
    found["restarted"] = phase(server, args, part, 2)  # the same prompts again
    server.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget_soak", description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--disk", default="1GiB")
    parser.add_argument("--kv-host", default="64MiB")
    parser.add_argument("--kv-offload", metavar="BYTES")
    parser.add_argument("--kv-window", metavar="BYTES", default="16MiB")
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--max-model-len", type=int, default=3072)
    parser.add_argument("--trouble", action="store_true")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="the rest are options of pagoda serve")
    args = parser.parse_args()
    budget = parse_bytes(args.memory)
    group = Group(budget + budget // 20)
    try:
        with tempfile.TemporaryDirectory() as args.folder:
            found = soak(args, group)
        killed, group_peak = group.kills(), int(group.peak_file.read_text())
    finally:
        group.close()
    answers = Counter[str]()
    for name, one in found.items():
        answers.update({f"{name}, {what}": num for what, num in one["answers"].items()})
    bad = {what: num for what, num in answers.items() if not what.endswith("status 200") and "killed, cut" not in what}
    peaks = [one["peak_rss"] for one in found.values() if "peak_rss" in one]
    verdict = {
        "budget": budget, "peak_rss": max(peaks), "cgroup_peak": group_peak, "killed_by_the_kernel": killed,
        "not_answered": bad, "passed": not killed and not bad and max(*peaks, group_peak) <= budget,
    }  # fmt: skip
    print(json.dumps(found | {"verdict": verdict}, indent=1))
    sys.exit(0 if verdict["passed"] else 1)


if __name__ == "__main__":
    main()
