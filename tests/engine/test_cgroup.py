"""The budget in a real memory cgroup at budget + 5 %: a load that wants more than there is, and nobody is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUDGET = 520 << 20

LOAD = """
import json, random, sys
from pagoda import LLM, SamplingParams
from pagoda.budget import MachineProbe
budget, folder = int(sys.argv[1]), sys.argv[2]
rng = random.Random(0)
with LLM("lantern", memory=budget, max_num_batched_tokens=512, kv_dir=folder, disk="64MiB") as llm:
    prompts = [[rng.randrange(3, 2000) for _ in range(rng.choice((20, 200, 1500)))] for _ in range(40)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    memory = llm.stats()["memory"]
print(json.dumps({"answered": sum(o.error is None and len(o.outputs[0].token_ids) == 24 for o in outputs),
                  "peak_leased": memory["peak_leased_bytes"], "peak_rss": MachineProbe().peak_rss()}))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A fresh memory cgroup below this process's own, version 1 or 2; skipped where the system does not let us."""
    from pagoda.budget.cgroup import _hierarchies

    made = None
    for hierarchy in _hierarchies(Path("/")):
        folder = hierarchy.group / f"pagoda-test-{os.getpid()}"
        limit = folder / ("memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes")
        try:
            folder.mkdir()
            made = folder
            limit.write_text(str(BUDGET + BUDGET // 20))
        except OSError:
            if made is not None:
                made.rmdir()
            made = None
            continue
        yield folder
        break
    if made is None:
        pytest.skip("no memory cgroup can be made here (needs root, and the memory controller)")
    for _ in range(50):
        try:
            made.rmdir()
            return
        except OSError:  # the last process is still being taken apart
            time.sleep(0.1)


def kills(group: Path) -> int:
    """How often the kernel ended a process of the group for memory."""
    for name in ("memory.events", "memory.oom_control"):
        if (group / name).exists():
            fields = dict(line.split()[:2] for line in (group / name).read_text().splitlines())
            return int(fields.get("oom_kill", 0))
    return 0


def test_a_load_beyond_the_budget_is_served_within_it(group: Path, tmp_path: Path) -> None:
    procs = group / "cgroup.procs"
    join = f"import os; open({str(procs)!r}, 'w').write(str(os.getpid()))\n"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", join + LOAD, str(BUDGET), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (kills(group), found["answered"]) == (0, 40)
    assert found["peak_leased"] <= BUDGET
    assert found["peak_rss"] <= BUDGET
