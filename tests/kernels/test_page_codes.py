"""Pages that kernels encode have the bytes that their codec gives them, whatever the instruction set."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from pagoda.kernels.ops.page_codes import reference
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._windowed import WindowedCodec
from pagoda.kv.policies.base import Need

from .isas import ISAS, cpu

FLOATS = "bfp_outlier_rearrange"
GRIDS = ("int2", "int2(keys='token')", "kivi(bits=4)", "kivi(bits=4, keys='token')")
BLOCKS = (f"{FLOATS}{how}" for how in ("", "(mantissa=8)", "(mantissa=2, block=7)", "(rearrange=False, block=1000)"))


def codec_of(kv: str) -> WindowedCodec:
    codec = parse_policy(kv).windowed
    assert codec is not None
    return codec


def learned_by(codec: WindowedCodec, k: torch.Tensor, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a calibration on these numbers ``[H, N, dim]`` finds, of the same heads."""
    if Need.CALIBRATION not in codec.needs:
        return {}
    return {name: x[0] for name, x in codec.learn(k[None].float(), v[None].float()).items()}


def numbers(dtype: torch.dtype, *shape: int, seed: int) -> torch.Tensor:
    """With a channel of outliers, a slot without any spread, and one of a size that bfloat16 barely has."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 1] *= 300
    x[:, 2] = x[:, 2, :1]
    x[:, 5] *= 1e-38
    return x.to(dtype)


@cache
def encoded(kv: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """Numbers, how they are encoded, and the reference's pages among others."""
    size, k_dim, v_dim = shape
    k, v = (numbers(dtype, 6, 3 * size + 5, dim, seed=dim) for dim in (k_dim, v_dim))
    codec = codec_of(kv)
    code = codec.code(size, k_dim, v_dim, learned_by(codec, k[:, :9], v[:, :9]))
    ids = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:18].view(6, 3)
    pages = torch.full((20, code.num_bytes + 3), 99, dtype=torch.uint8)
    reference(pages, ids, k, v, code)
    return k, v, code, ids, pages


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", [*GRIDS, *BLOCKS, "coupled_quantization"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64, 64), (16, 128, 96), (8, 40, 13), (16, 33, 8), (4, 512, 30)])
def test_bytes_equal_those_of_the_codec(isa: str, kv: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    k, v, code, ids, wanted = encoded(kv, dtype, shape)
    got = torch.full_like(wanted, 99)
    cpu.page_codes(got, ids, k, v, code, isa=isa)
    assert torch.equal(got, wanted)


@cache
def dictionary(*dims: int) -> dict[str, torch.Tensor]:
    """Of four heads."""
    return learned_by(codec_of("csr"), *(numbers(torch.float32, 4, 300, dim, seed=dim + 1) for dim in dims))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("nonzeros", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64, 64), (8, 40, 13), (4, 160, 33)])
def test_atoms_are_those_that_torch_finds(isa: str, nonzeros: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """But where two match alike but for rounding: pages say as closely what they are of, and nearly all are equal."""
    size, k_dim, v_dim = shape
    k, v = (numbers(dtype, 4, 3 * size + 5, dim, seed=dim) for dim in (k_dim, v_dim))
    code, ids = (
        codec_of(f"csr(nonzeros={nonzeros})").code(*shape, dictionary(k_dim, v_dim)),
        torch.arange(12).view(4, 3),
    )
    wanted, got = torch.zeros(2, 12, code.num_bytes, dtype=torch.uint8).unbind()
    reference(wanted, ids, k, v, code)
    cpu.page_codes(got, ids, k, v, code, isa=isa)
    assert (got == wanted).float().mean() > 0.99
    for mine, theirs, x in zip(code.decode(got[ids]), code.decode(wanted[ids]), (k, v), strict=True):
        x = x[:, : 3 * size].unflatten(1, (3, size)).float()
        missed, allowed = ((found - x).norm(dim=-1) for found in (mine, theirs))
        assert (missed <= 1.01 * allowed + 0.01 * x.norm(dim=-1)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_atoms_of_what_is_no_number_are_none(isa: str) -> None:
    codec, x = codec_of("csr"), torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(1))
    code = codec.code(8, 32, 32, learned_by(codec, x, x))
    rows = x[:, :8].clone()
    rows[0, 2, 5], rows[0, 6, 1] = torch.nan, torch.inf
    page = torch.zeros(1, code.num_bytes, dtype=torch.uint8)
    cpu.page_codes(page, torch.zeros(1, 1, dtype=torch.int64), rows, rows, code, isa=isa)
    assert code.decode(page[None])[0][0, 0].isfinite().all(-1).tolist() == [slot not in (2, 6) for slot in range(8)]


def test_numbers_in_the_middle_of_two_codes_go_to_the_even_one() -> None:
    code = codec_of("int2").code(8, 32, 32, {})
    halves = torch.arange(7).float() / 2  # 0, 0.5, … 3: as codes 0, 0, 1, 2, 2, 2, 3
    x = torch.nn.functional.pad(halves, (0, 1))[:, None].expand(8, 32).contiguous()[None]
    wanted, got = torch.zeros(2, 1, code.num_bytes, dtype=torch.uint8).unbind()
    reference(wanted, torch.zeros(1, 1, dtype=torch.int64), x, x, code)
    cpu.page_codes(got, torch.zeros(1, 1, dtype=torch.int64), x, x, code)
    assert torch.equal(got, wanted)
    assert [int(row[0]) & 3 for row in got[0, : 8 * 8].view(8, 8)] == [0, 0, 1, 2, 2, 2, 3, 0]


def test_what_is_no_number_stays_none() -> None:
    """A broken model must not look sound because its keys were encoded."""
    code = codec_of("int2").code(8, 32, 32, {})
    for at in range(8):
        x = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(at))
        x[0, at, 3 * at] = torch.nan
        page = torch.zeros(1, code.num_bytes, dtype=torch.uint8)
        cpu.page_codes(page, torch.zeros(1, 1, dtype=torch.int64), x, x, code)
        k, v = code.decode(page[None])
        assert k[0, 0, :, 3 * at].isnan().all()
        assert v[0, 0, at].isnan().all()
        assert k.isnan().sum() == 8
        assert v.isnan().sum() == 32


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mantissa", [2, 4, 8])
def test_blocks_of_floats_at_their_limits(isa: str, mantissa: int) -> None:
    """Numbers between two codes, zeros, numbers hardly there, the largest, and what is none, which is read as -inf."""
    code = codec_of(f"{FLOATS}(rearrange=False, block=8, mantissa={mantissa})").code(8, 8, 8, {})
    x = torch.arange(-4, 4).float().repeat(8, 1)
    x[1] = (x[1] + 0.5) * 2.0 ** (3 - mantissa)  # each in the middle of two codes
    x[2], x[3], x[4], x[5] = 0.0, x[3] * 1e-43, x[4] * 1e-34, x[5] * 4e37
    x[6, 2], x[7, 3] = torch.nan, torch.inf
    wanted, got = torch.zeros(2, 1, code.num_bytes, dtype=torch.uint8).unbind()
    reference(wanted, torch.zeros(1, 1, dtype=torch.int64), x[None], x[None], code)
    cpu.page_codes(got, torch.zeros(1, 1, dtype=torch.int64), x[None], x[None], code, isa=isa)
    assert torch.equal(got, wanted)
    k = code.decode(got[None])[0][0, 0]
    assert k[:6].isfinite().all()
    assert k[2].eq(0).all()
    assert k[6, 2] == -torch.inf
    assert k[7, 3] > 1e38


def test_a_page_outside_the_storage_is_refused() -> None:
    code, x = codec_of("kivi").code(8, 32, 32, {}), torch.zeros(1, 8, 32)
    with pytest.raises(IndexError, match="a page that is not there"):
        cpu.page_codes(torch.zeros(4, code.num_bytes, dtype=torch.uint8), torch.tensor([[4]]), x, x, code)


@pytest.mark.parametrize("name", [n for n, one in POLICIES.items() if getattr(one, "plain", False)])
def test_what_is_called_plain_looks_at_nothing_else(name: str) -> None:
    """The same pages whether they are encoded together or one by one."""
    codec: WindowedCodec = POLICIES.get(name)()  # type: ignore[assignment]
    k, v = (torch.randn(2, 3, 16, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    code = codec.code(16, 64, 64, learned_by(codec, k.flatten(1, 2), v.flatten(1, 2)))
    assert code.encode is not None
    apart = torch.stack([code.encode(k[:, n : n + 1], v[:, n : n + 1])[:, 0] for n in range(3)], 1)
    assert torch.equal(code.encode(k, v), apart)
