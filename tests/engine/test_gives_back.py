"""``close`` gives every byte back: what is private to the process afterwards is what it was before, within 3 %."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from pagoda import LLM, SamplingParams
from pagoda.budget import MachineProbe, trim_heap
probe = MachineProbe()

def used():
    gc.collect(); trim_heap()
    return probe.private_rss()

def scene():
    with LLM("lantern", memory="1GiB", max_num_batched_tokens=512) as llm:
        llm.generate([[seed + 3] * 1500 for seed in range(8)], SamplingParams(temperature=0, max_tokens=8))
        peak = probe.private_rss()
    assert llm.__dict__["_built"] is None
    return peak

scene()  # threads, thread stacks and caches of libraries that stay for the life of the process
before = used()
peak = scene()
after = used()
assert peak > before * 1.05, (peak, before)
assert after <= before * 1.03, (before, peak, after)
"""


def test_close_gives_every_byte_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
