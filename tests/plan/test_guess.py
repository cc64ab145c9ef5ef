"""What stands in for a calibration: from the processor's instruction sets, and near what the kernels do here."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pagoda.budget.probe import MachineProbe
from pagoda.plan.machine import AS_FLOATS, Machine
from pagoda.weights.formats import FORMATS

OLD, NEWER, NEWEST = "avx2 fma", "avx2 avx512f avx512_bf16", "avx2 avx512f avx512_bf16 amx_tile amx_bf16 amx_int8"


def guess_of(root: Path, flags: str) -> Machine:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(f"model name\t: P\nflags\t\t: {flags}\n")
    return Machine.guess(MachineProbe(root))


def test_prompts_are_guessed_by_what_multiplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAGODA_ISA", raising=False)
    old, newer, newest = (guess_of(tmp_path, flags) for flags in (OLD, NEWER, NEWEST))
    by_many = [machine.weight_seconds("bf16", 512, 2.0) for machine in (old, newer, newest)]
    assert by_many[0] > 2 * by_many[1] > 8 * by_many[2]
    assert old.attend_prompt > newer.attend_prompt > newest.attend_prompt
    assert len({machine.weight_seconds("bf16", 1, 2.0) for machine in (old, newer, newest)}) == 1, "by their bytes"
    assert newest.weight_seconds("nf4(group=32)", 512, 0.5) == newer.weight_seconds("nf4", 512, 0.5), "no tiles"
    monkeypatch.setenv("PAGODA_ISA", "avx512bf16")
    assert guess_of(tmp_path, NEWEST) == newer


def test_formats_that_are_multiplied_as_floats_exist() -> None:
    assert {name for name in AS_FLOATS if not name.startswith("none.")} <= set(FORMATS.names())


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_the_guess_is_near_what_a_core_does_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within three times, by the processor's time of one thread, so that others on the machine hardly matter."""
    pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")
    import torch

    from pagoda.kernels.torch_threads import torch_threads
    from pagoda.weights.filling import pack_matrix
    from pagoda.weights.quantization import parse_format

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    guess, tokens, rows, cols = Machine.guess(), 512, 1024, 2048
    weight = pack_matrix(parse_format(name), torch.randn(rows, cols).bfloat16(), torch.bfloat16)
    x, times = torch.randn(tokens, cols).bfloat16(), []
    with torch_threads(1):
        for _ in range(9):
            start = time.thread_time()
            weight.linear(x)
            times.append(time.thread_time() - start)
    measured = min(times) / (rows * cols)
    size = weight.nbytes / (rows * cols)
    assert 1 / 3 < guess.weight_seconds(name, tokens, size) / measured < 3
