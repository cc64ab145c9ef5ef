"""Every codec of the folder: what it says about bytes and errors, and that every op sees through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.core.types import DTYPE_BYTES, KVFormat
from pagoda.kernels import dispatch
from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import copy_pages, kv_compact, kv_write, paged_attention
from pagoda.kernels.ops._paged import gather
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.attention import reference as attention_reference
from pagoda.kernels.ops.kv_write import reference as write_reference
from pagoda.kv.codecs import CODECS
from pagoda.kv.codecs.base import codec_of, kv_dtypes, with_dtype
from pagoda.kv.pages import PagePool
from pagoda.kv.prefix import PrefixCache
from pagoda.kv.storage import PageStorage

dispatch.load_providers()
CODEC_NAMES = CODECS.names()
DIMS = [1, 2, 5, 8, 9, 31, 32, 33, 40, 64, 80, 128, 193]
FORMAT = KVFormat(num_layers=2, num_kv_heads=2, k_dim=64, v_dim=64, page_size=16, dtype="bfloat16")
BYTES_OF_64 = {"int8": 66, "fp8": 66, "int4": 40}  # K, or V, of one slot of one head


@pytest.fixture(params=CODEC_NAMES)
def codec(request: pytest.FixtureRequest) -> Any:
    return CODECS.get(request.param)


@pytest.fixture(params=["reference", "chosen"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with dispatch.restricted("reference" if request.param == "reference" else ""):
        yield str(request.param)


def instruction_sets() -> list[str]:
    """What the C++ bodies can be run with on this machine; none where they are not built."""
    if "cpu" not in dispatch.available().ops["kv_write"]:
        return []
    from pagoda.kernels import cpu

    order = ["base", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512bf16slow", "amx"]
    return order[: order.index(cpu.best_isa()) + 1]


def rows(dim: int, num: int = 200) -> torch.Tensor:
    """Slots of every kind: even ones, with outliers, shifted, constant, zero, very large and very small."""
    x = Make(seed=dim).normal(num, dim)
    x[10:20] *= torch.logspace(-30, 30, 10)[:, None]
    x[20:40, 0] *= 50
    x[40:60] += 7
    x[60:80] -= 3
    x[80] = 0
    x[81] = 1.5
    x[82] = -1e-38
    return x


def test_the_contract(codec: Any) -> None:
    assert codec.name in CODEC_NAMES
    assert type(codec).__module__ == f"pagoda.kv.codecs.{codec.name}"
    assert 0 < codec.max_error < 0.1
    assert BYTES_OF_64.get(codec.name, 65) == codec.code_bytes(64) + codec.scale_bytes(64)


@pytest.mark.parametrize("dim", DIMS)
def test_round_trip(codec: Any, dim: int) -> None:
    x = rows(dim)
    codes, scales = codec.encode(x)
    assert (codes.dtype, scales.dtype) == (torch.uint8, torch.uint8)
    assert codes.shape == (len(x), codec.code_bytes(dim))
    assert scales.shape == (len(x), codec.scale_bytes(dim))
    error = (codec.decode(codes, scales, dim) - x).abs()
    # As a share of the slot's largest number; below 2^-119 bfloat16 scales have no bits left to be exact with.
    assert (error <= codec.max_error * x.abs().amax(-1, keepdim=True) + 2e-36).all()
    assert (codec.decode(*codec.encode(torch.zeros(3, dim)), dim) == 0).all()


def test_slots_are_independent(codec: Any) -> None:
    """A slot's bytes depend on its own numbers alone, whatever is encoded with it."""
    x = rows(64)
    codes, scales = codec.encode(x)
    for i in (0, 25, 80):
        one = codec.encode(x[i])
        assert torch.equal(one[0], codes[i])
        assert torch.equal(one[1], scales[i])


@pytest.mark.parametrize("page_size", [1, 8, 16])
@pytest.mark.parametrize("dims", [(64, 64), (96, 0), (33, 50), (8, 40)])
def test_bytes_are_exact_everywhere(codec: Any, dims: tuple[int, int], page_size: int) -> None:
    """Accounting, storage, layout and the C++ kernels count the same bytes."""
    fmt = with_dtype(KVFormat(3, 2, *dims, page_size, "float32"), codec.name)
    per_slot = sum(codec.code_bytes(dim) + codec.scale_bytes(dim) for dim in dims if dim)
    assert (fmt.dtype, fmt.slot_bytes, fmt.page_bytes) == (codec.name, per_slot, page_size * per_slot)
    assert fmt.block_bytes == 6 * fmt.page_bytes
    storage = PageStorage(fmt, 2)
    assert storage.reserved_bytes == 2 * fmt.block_bytes
    assert storage.pages.dtype == torch.uint8
    assert storage.layout == PageLayout(page_size, *dims, torch.uint8, codec)
    assert codec_of(fmt) is codec
    if "cpu" in dispatch.available().ops["kv_write"]:
        from pagoda.kernels._extension import _cpu, store_of

        assert _cpu.page_bytes(store_of(storage.layout), page_size, *dims) == fmt.page_bytes
    storage.close()


def test_formats() -> None:
    assert with_dtype(FORMAT, "auto") is FORMAT
    assert with_dtype(FORMAT, "float32").page_bytes == 2 * FORMAT.page_bytes
    assert codec_of(FORMAT) is None
    assert kv_dtypes() == ["auto", *DTYPE_BYTES, *CODEC_NAMES]
    with pytest.raises(ConfigError, match="kv_cache_dtype 'int5'; accepted: auto, bfloat16.*int8"):
        with_dtype(FORMAT, "int5")


def written(codec: Any, dims: tuple[int, int], dtype: torch.dtype) -> tuple[PageLayout, torch.Tensor, dict[str, Any]]:
    """Pages of a codec in which every slot of 24 pages was written, and what was written."""
    layout, make = PageLayout(8, *dims, torch.uint8, codec), Make(dtype)
    pages, k = layout.new_pages(24), rows(dims[0], 192)[:, None].clamp(-1e4, 1e4).to(dtype)
    slots = make.permutation(192)[:, None]
    arguments = {
        "k": k, "v": make.normal(192, 1, dims[1]) if dims[1] else None,
        "page_ids": slots // 8, "slots": slots % 8, "layout": layout,
    }  # fmt: skip
    return layout, pages, arguments


@pytest.mark.parametrize("dims", [(64, 64), (33, 50), (96, 0), (8, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_written_bytes_are_the_references(codec: Any, dims: tuple[int, int], dtype: torch.dtype) -> None:
    """Every body writes the same bytes as ``encode``, with every instruction set."""
    _, expected, arguments = written(codec, dims, dtype)
    write_reference(pages=expected, **arguments)
    got = torch.zeros_like(expected)
    kv_write(pages=got, **arguments)
    assert torch.equal(got, expected)
    for isa in instruction_sets():
        from pagoda.kernels import cpu

        got.zero_()
        cpu.kv_write(pages=got, **arguments, isa=isa)
        assert torch.equal(got, expected), isa


@pytest.mark.parametrize("dims", [(64, 64), (33, 50), (96, 0), (8, 5)])
def test_gather_decodes(codec: Any, dims: tuple[int, int], implementation: str) -> None:
    layout, pages, arguments = written(codec, dims, torch.float32)
    kv_write(pages=pages, **arguments)
    k, v = gather(pages, layout, torch.arange(24)[None], torch.float32)
    order = (arguments["page_ids"] * 8 + arguments["slots"])[:, 0].long()
    x = arguments["k"][:, 0]
    assert (k[0, order] - x).abs().le(codec.max_error * x.abs().amax(-1, keepdim=True) + 1e-30).all()
    assert (v is None) == (dims[1] == 0)


@pytest.mark.parametrize("q_lens", [[1, 1, 1], [9, 1, 40]], ids=["decode", "chunks"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 96), (33, 50), (96, 0), (8, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention_equals_decoding_first(
    codec: Any, dtype: torch.dtype, dims: tuple[int, int], q_lens: list[int], implementation: str
) -> None:
    """The same pages decoded into numbers, and those attended."""
    make, layout = Make(dtype), PageLayout(16, *dims, torch.uint8, codec)
    table, num_pages = layer_table(make, q_lens, [300, 17, 41], page_size=16, num_kv_heads=2)
    slots = torch.arange(num_pages * 16, dtype=torch.int32)[:, None]
    pages = layout.new_pages(num_pages)
    kv_write(
        make.normal(len(slots), 1, dims[0]), make.normal(len(slots), 1, dims[1]) if dims[1] else None,
        pages, layout, slots // 16, slots % 16,
    )  # fmt: skip
    numbers = PageLayout(16, *dims, torch.float32)
    k, v = gather(pages, layout, torch.arange(num_pages)[None], torch.float32)
    decoded = torch.cat([x.view(num_pages, -1) for x in (k, v) if x is not None], 1)
    q, sums = make.normal(sum(q_lens), 6, dims[0]), torch.empty(3, 2, 300)
    options: dict[str, Any] = {"scale": dims[0] ** -0.5, "v_dim": None if dims[1] else 80}
    wanted_sums = torch.empty_like(sums)
    want = attention_reference(q.float(), decoded, numbers, table, **options, prob_sums=wanted_sums)
    got = paged_attention(q, pages, layout, table, **options, prob_sums=sums)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sums, wanted_sums, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(paged_attention(q, pages, layout, table, **options), got, rtol=0, atol=2 * tolerance)
    for isa in instruction_sets() if implementation == "chosen" else []:
        from pagoda.kernels import cpu

        got = cpu.paged_attention(q, pages, layout, table, **options, prob_sums=sums, isa=isa)
        torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(sums, wanted_sums, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not instruction_sets(), reason="built without the C++ kernels")
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("byte_products", [False, True])
def test_shared_beginnings_are_read_once_with_the_same_bits(codec: Any, byte_products: bool, per_head: bool) -> None:
    """Found in the page tables whatever pages hold, in tables of runs and in those of every head by itself."""
    from pagoda.kernels import cpu
    from pagoda.kernels.cpu_attention import plan

    make, layout = Make(torch.bfloat16), PageLayout(16, 64, 64, torch.uint8, codec)
    table, num_pages = layer_table(
        make, [1, 2, 1, 1], [600, 590, 530, 40], page_size=16, num_kv_heads=2, per_head=per_head, shared_blocks=33
    )
    slots = torch.arange(num_pages * 16, dtype=torch.int32)[:, None]
    pages = layout.new_pages(num_pages)
    k, v = make.normal(2, len(slots), 1, 64).unbind()
    kv_write(k, v, pages, layout, slots // 16, slots % 16)
    q = make.normal(5, 6, 64)
    for isa in instruction_sets():
        alone, together = (
            cpu.paged_attention(
                q, pages, layout, table, scale=0.125, byte_products=byte_products, share_prefixes=shared, isa=isa
            )
            for shared in (False, True)
        )
        assert torch.equal(alone, together), isa
    items, _ = plan(table, layout, 6)
    assert {seqs for seqs, *_ in items} >= {(0, 1, 2)}


@pytest.mark.parametrize("dims", [(64, 64), (33, 50), (96, 0), (8, 5)])
def test_moves_and_copies_carry_codes_and_scales(codec: Any, dims: tuple[int, int], implementation: str) -> None:
    layout, pages, arguments = written(codec, dims, torch.float32)
    kv_write(pages=pages, **arguments)
    k, v = gather(pages, layout, torch.arange(24)[None], torch.float32)
    src, dst = torch.arange(0, 64, 2, dtype=torch.int32), torch.arange(32, dtype=torch.int32)
    kv_compact(pages, layout, src // 8, src % 8, dst // 8, dst % 8)
    copy_pages(pages, torch.tensor([0, 1]), torch.tensor([20, 21]))
    after_k, after_v = gather(pages, layout, torch.arange(24)[None], torch.float32)
    for before, after in ((k, after_k), (v, after_v)):
        if before is None or after is None:
            continue
        assert torch.equal(after[0, :32], before[0, :64:2])
        assert torch.equal(after[0, 160:176], before[0, :32:2])


def test_formats_are_told_apart(codec: Any) -> None:
    """The prefix cache's chains begin with the format: codes are never taken for numbers, nor for other codes."""
    fmt = with_dtype(FORMAT, codec.name)
    assert repr(fmt) != repr(dataclasses.replace(fmt, dtype="float32"))
    assert len({repr(with_dtype(FORMAT, name)) for name in kv_dtypes()[1:]}) == len(kv_dtypes()) - 1


@pytest.mark.parametrize("dtype", kv_dtypes()[1:])
def test_rows_that_were_once_written_otherwise_are_not_taken_for_these(dtype: str) -> None:
    """int4 of short groups had four bits in as many bytes: what an earlier version left on a disk is not found, and
    what it left in any other format is.
    """

    def as_before(k_dim: int, v_dim: int) -> bool:
        fmt = with_dtype(KVFormat(1, 1, k_dim, v_dim, 16, "float32"), dtype)
        return PrefixCache(PagePool(fmt, 1)).root().tokens == repr(("", "", "", fmt)).encode()

    others = [dim for dim in DIMS if not as_before(dim, dim)]
    assert others == ([1, 2, 5, 8, 33, 40, 193] if dtype == "int4" else [])
    assert as_before(96, 0)
    assert as_before(64, 8) == (dtype != "int4")
