"""The thread pool of the C++ kernels: every item once, whoever calls, from where and after what."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.packed import PackedWeight
from pagoda.kernels.quantize import pack

from .threads import threads

cpu = pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a weight that is large enough to be shared among threads."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 512, generator=generator), torch.randn(2048, 512, generator=generator)
    return x.bfloat16(), weight.bfloat16()


def product(num_threads: int, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with threads(num_threads):
        return cpu.linear(*pair)


def packed_product(num_threads: int, x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    with threads(num_threads):
        return cpu.packed_linear(x, packed)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    pair = inputs()
    expected = product(1, pair)
    for num_threads in (2, 3, 5, 2, 1, 4):
        for _ in range(20):
            assert torch.equal(product(num_threads, pair), expected)
    assert cpu.num_workers() >= 4, "the largest job so far had five threads"


def test_callers_at_the_same_time_do_not_disturb_each_other() -> None:
    pairs = [inputs(seed) for seed in range(4)]
    expected = [product(1, pair) for pair in pairs]
    wrong: list[int] = []

    def call(seed: int) -> None:
        wrong.extend(seed for _ in range(30) if not torch.equal(product(2, pairs[seed]), expected[seed]))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_workers_that_slept_are_woken() -> None:
    pair = inputs()
    expected = product(1, pair)
    for _ in range(5):
        threading.Event().wait(0.01)  # far longer than they spin
        assert torch.equal(product(2, pair), expected)


def test_a_forked_child_starts_its_own_workers() -> None:
    pair = inputs()
    expected = product(2, pair)
    child = os.fork()
    if child == 0:  # our kernel alone: torch's OpenMP does not survive a fork, and pytest's exit handlers must not run
        os._exit(0 if torch.equal(product(2, pair), expected) and cpu.num_workers() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("outputs", [16, 48, 64, 1040, 6000])
def test_shares_of_any_size_cover_a_product_once(form: str, outputs: int) -> None:
    """Few tokens: each thread follows its share of the rows, and takes from the others' ends when it is done."""
    make = Make(torch.bfloat16)
    packed = pack(make.normal(outputs, 640, scale=0.04, dtype=torch.float32), form, group=128 if form == "int4" else 0)
    for tokens in (1, 5, 64, 65):
        x = make.normal(tokens, 640)
        expected = packed_product(1, x, packed)
        for num_threads in (2, 3, 7, 64, 80):
            assert torch.equal(packed_product(num_threads, x, packed), expected), (tokens, num_threads)


def test_a_product_whose_pool_is_taken_is_done_by_its_caller() -> None:
    make = Make(torch.bfloat16)
    packed, x = pack(make.normal(4096, 512, dtype=torch.float32), "bf16"), make.normal(3, 512)
    expected, wrong = packed_product(1, x, packed), []

    def call() -> None:
        wrong.extend(1 for _ in range(60) if not torch.equal(cpu.packed_linear(x, packed), expected))

    with threads(2):
        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("g++") is None, reason="compiles by g++")
def test_the_pool_by_itself(tmp_path: Path) -> None:
    """What an item throws reaches the caller; a thread that is not run is changed places with, and affinities stay."""
    sources = Path(__file__).parents[2] / "src/pagoda/kernels/csrc"
    program = tmp_path / "pool"
    files = [
        str(Path(__file__).with_name("pool.cpp")),
        *(str(sources / f"{name}.cpp") for name in ("parallel", "places")),
    ]
    subprocess.run(["g++", "-std=c++20", "-O1", "-pthread", f"-I{sources}", *files, "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
