"""Tiles are cut by the sizes of the caches, and no bit of a result depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pagoda.kernels._extension import _cpu, caches
from pagoda.kernels.case import Make
from pagoda.kernels.cpu_attention import plan
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import TOLERANCE, reference
from pagoda.kernels.quantize import pack

from .isas import ISAS, cpu

KIB, MIB = 1 << 10, 1 << 20
SIZES = [(16 * KIB, 256 * KIB), (48 * KIB, 600 * KIB), (48 * KIB, 2 * MIB), (128 * KIB, 16 * MIB)]


@pytest.fixture
def assume() -> Iterator[Callable[[int, int], None]]:
    yield _cpu.assume_caches
    _cpu.assume_caches(0, 0)


def test_the_machine_is_read_again_when_nothing_is_assumed(assume: Callable[[int, int], None]) -> None:
    own = caches()
    assert 4 * KIB <= own[0] < own[1]
    assume(1 * KIB, 2 * KIB)
    assert caches() == (1 * KIB, 2 * KIB)
    assume(0, 0)
    assert caches() == own


def cpu_folder(root: Path, number: int, siblings: str, described: list[tuple[str, str, str, str]]) -> None:
    """Caches as (level, type, size, CPUs that share it)."""
    texts = {"topology/thread_siblings_list": siblings}
    for index, fields in enumerate(described):
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), fields, strict=True):
            texts[f"cache/index{index}/{name}"] = value
    for name, text in texts.items():
        file = root / f"cpu{number}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def test_caches_are_read_and_shared_ones_divided(tmp_path: Path) -> None:
    fast = [("1", "Data", "48K", "0,8"), ("1", "Instruction", "32K", "0,8"), ("2", "Unified", "2048K", "0,8")]
    small = [("1", "Data", "32K", "20"), ("2", "Unified", "4M", "20-23"), ("3", "Unified", "36864K", "0-23")]
    cpu_folder(tmp_path, 0, "0,8", fast)
    cpu_folder(tmp_path, 20, "20", small)
    cpu_folder(tmp_path, 3, "3", [("1", "Data", "0K", "3"), ("2", "Unified", "", "3")])
    root = str(tmp_path)
    assert _cpu.read_caches(root, 0) == (48 * KIB, 2 * MIB), "both hardware threads are one core's"
    assert _cpu.read_caches(root, 20) == (32 * KIB, 1 * MIB), "four cores share the second"
    assert _cpu.read_caches(root, 3) == (32 * KIB, 1 * MIB), "what cannot be is not believed"
    assert _cpu.read_caches(root, 77) == (32 * KIB, 1 * MIB), "nothing is said"


@pytest.mark.parametrize(
    ("second", "columns", "queries"),
    [(1 * MIB, 64, 72), (512 * KIB, 64, 36), (2 * MIB, 64, 144), (1 * MIB, 256, 27), (64 * KIB, 64, 6)],
)
def test_rows_of_a_tile_follow_the_second_cache(
    assume: Callable[[int, int], None], second: int, columns: int, queries: int
) -> None:
    """504 rows of seven query heads with 1 MiB, what was measured best there; fewer where rows are wider."""
    assume(32 * KIB, second)
    table, _ = layer_table(Make(), [2048], [2048], page_size=16, num_kv_heads=2, per_head=False)
    items, _ = plan(table, PageLayout(16, columns, columns, torch.float32), 14)
    assert len(items) == 2 * -(-2048 // queries)


def attended(dtype: torch.dtype, options: dict[str, object], isa: str) -> torch.Tensor:
    """Chunks of several tiles beside decode steps over a common beginning."""
    make, layout = Make(dtype), PageLayout(16, 32, 32, dtype)
    table, num_pages = layer_table(
        make, [300, 1, 1, 1, 90], [420, 700, 650, 513, 700], page_size=16, num_kv_heads=1, shared_blocks=33
    )
    pages = make.pages(num_pages, layout)
    return cpu.paged_attention(make.normal(393, 7, 32), pages, layout, table, scale=0.2, isa=isa, **options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", [{}, {"window": 90}], ids=["all", "window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_has_the_same_bits_with_any_caches(
    assume: Callable[[int, int], None], dtype: torch.dtype, options: dict[str, object], isa: str
) -> None:
    assume(32 * KIB, 1 * MIB)
    expected = attended(dtype, options, isa)
    for sizes in SIZES:
        assume(*sizes)
        assert torch.equal(attended(dtype, options, isa), expected), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_latent_pages_that_no_second_cache_holds(assume: Callable[[int, int], None], dtype: torch.dtype) -> None:
    """576 columns, of which 512 are values, for sixteen query heads: d^2 numbers are more than a cache of 1 MiB."""
    make, layout = Make(dtype), PageLayout(16, 576, 0, dtype)
    table, num_pages = layer_table(make, [1, 1, 40], [300, 17, 50], page_size=16, num_kv_heads=1)
    arguments = {
        "q": make.normal(42, 16, 576), "pages": make.pages(num_pages, layout), "layout": layout, "table": table,
        "scale": 0.04, "v_dim": 512,
    }  # fmt: skip
    expected = reference(**arguments)
    rtol, atol = TOLERANCE[dtype]
    results = []
    for sizes in [(32 * KIB, 1 * MIB), *SIZES]:
        assume(*sizes)
        results.append(cpu.paged_attention(**arguments))
        torch.testing.assert_close(results[-1], expected, rtol=rtol, atol=atol)
        assert torch.equal(results[-1], results[0]), sizes


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("form", "options", "dynamic"),
    [
        ("bf16", {}, False), ("bf12", {}, False), ("int8", {}, False), ("int8", {}, True), ("ternary", {}, False),
        ("int4", {"group": 64, "symmetric": False}, False), ("int4", {"group": 128}, True),
        ("int5", {"group": 96}, False), ("fp16", {}, False), ("fp8", {}, False), ("nf4", {"group": 64}, False),
    ],
    ids=str,
)  # fmt: skip
def test_products_have_the_same_bits_with_any_caches(
    assume: Callable[[int, int], None], form: str, options: dict[str, object], dynamic: bool, isa: str
) -> None:
    """One tile, few tokens and many, inputs in one piece and in several."""
    make = Make(torch.bfloat16)
    packed = pack(make.normal(72, 1700, scale=0.02, dtype=torch.float32), form, **options)
    x = make.normal(150, 1700)
    for tokens in (1, 12, 30, 150):
        results = []
        for sizes in [(32 * KIB, 1 * MIB), *SIZES]:
            assume(*sizes)
            results.append(cpu.packed_linear(x[:tokens], packed, dynamic=dynamic, isa=isa))
        assert all(torch.equal(result, results[0]) for result in results), tokens
