"""The C++ extension itself: what the processor can do, how the instruction set is lowered, whose threads it uses."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout

from .isas import ISAS, ORDER, cpu


def test_features_agree_with_the_kernel():
    """cpuid and xgetbv here, /proc/cpuinfo there."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        pytest.skip("needs an x86-64 Linux")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    features = cpu.cpu_features()
    assert {"avx2", "fma", "avx512f", "avx512_bf16", "amx_tile"} <= set(features)
    assert features == {name: name in flags for name in features}


def test_bad_ids_are_refused_before_memory_is_touched():
    layout = PageLayout(4, 16, 16, torch.float32)
    pages = Make().pages(3, layout)
    before, k, one = pages.clone(), torch.ones(2, 1, 16), torch.tensor([[0], [1]])
    for page_ids, slots, message in [
        ([[0], [3]], one, "page 3 of 3"),
        ([[0], [-1]], one, "page -1"),
        (one, [[0], [4]], "slot 4 of 4"),
    ]:
        with pytest.raises(IndexError, match=message):
            cpu.kv_write(k, k, pages, layout, torch.as_tensor(page_ids), torch.as_tensor(slots))
    with pytest.raises(IndexError, match="page 9 of 3"):
        cpu.copy_pages(pages, torch.tensor([0]), torch.tensor([9]))
    assert torch.equal(pages, before)


def test_the_best_instruction_set_is_one_of_the_compiled():
    assert cpu.best_isa() in ORDER


def best_isa_of_a_process(cap: str, before: str = "") -> subprocess.CompletedProcess[str]:
    script = f"{before}\nfrom pagoda.kernels._extension import best_isa; print(best_isa())"
    environment = os.environ | {"PAGODA_ISA": cap}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


BEST_OF_EACH = """
import os, sys
import torch  # once: the instruction set is chosen when the extension is loaded
for cap in sys.argv[1:]:
    if not os.fork():
        os.environ["PAGODA_ISA"] = cap
        from pagoda.kernels._extension import best_isa
        print(best_isa(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_the_environment_lowers_the_instruction_set():
    """For a whole process; asking for more than the machine has changes nothing."""
    asked = ["", ORDER[-1], *ISAS]
    run = subprocess.run([sys.executable, "-c", BEST_OF_EACH, *asked], capture_output=True, text=True, check=True)
    best, of_the_last, *of_each = run.stdout.split()
    assert ORDER.index(best) >= ORDER.index(ISAS[-1])
    assert of_the_last == best
    assert of_each == ISAS
    refused = best_isa_of_a_process("sse9")
    assert refused.returncode != 0
    assert "unknown instruction set 'sse9' in PAGODA_ISA; accepted: base, avx2" in refused.stderr


def test_how_codes_are_multiplied_is_asked_before_anything_is_loaded():
    environment = os.environ | {"PAGODA_KV_PRODUCTS": "sums"}
    script = "import pagoda.kernels.cpu"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ConfigError: PAGODA_KV_PRODUCTS=sums; accepted: bytes" in done.stderr


SMALL_SIGNAL_STACK = """
import ctypes, mmap
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = mmap.mmap(-1, 8192)
stack = Stack(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 0, 8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
"""


@pytest.mark.skipif("amx" not in ISAS, reason="no AMX on this machine, or not for this process")
def test_a_system_that_refuses_tiles_gets_the_instruction_set_before():
    """Linux does where a thread's stack for signals would not hold them; a system without AMX answers likewise."""
    assert best_isa_of_a_process("", SMALL_SIGNAL_STACK).stdout.strip() == "avx512bf16slow"
    assert best_isa_of_a_process("amx", SMALL_SIGNAL_STACK).stdout.strip() == "avx512bf16slow"
