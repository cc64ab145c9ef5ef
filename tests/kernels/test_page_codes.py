"""Pages that kernels encode have the bytes that their codec gives them, whatever the instruction set."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.ops.page_codes import reference
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._windowed import WindowedCodec

from .isas import ISAS, cpu

GRIDS = ("int2", "int2(keys='token')", "kivi(bits=4)", "kivi(bits=4, keys='token')")


def codec_of(kv: str) -> WindowedCodec:
    codec = parse_policy(kv).windowed
    assert codec is not None
    return codec


def numbers(dtype: torch.dtype, *shape: int, seed: int) -> torch.Tensor:
    """With a channel of outliers, a slot without any spread, and one of a size that bfloat16 barely has."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 1] *= 300
    x[:, 2] = x[:, 2, :1]
    x[:, 5] *= 1e-38
    return x.to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64, 64), (16, 128, 96), (8, 40, 13), (16, 33, 8), (4, 512, 30)])
def test_bytes_equal_those_of_the_codec(isa: str, kv: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    size, k_dim, v_dim = shape
    code = codec_of(kv).code(size, k_dim, v_dim, {})
    k, v = (numbers(dtype, 6, 3 * size + 5, dim, seed=dim) for dim in (k_dim, v_dim))
    ids = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:18].view(6, 3)
    wanted, got = (torch.full((20, code.num_bytes + 3), 99, dtype=torch.uint8) for _ in range(2))
    reference(wanted, ids, k, v, code)
    cpu.page_codes(got, ids, k, v, code, isa=isa)
    assert torch.equal(got, wanted)


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


def test_a_page_outside_the_storage_is_refused() -> None:
    code, x = codec_of("kivi").code(8, 32, 32, {}), torch.zeros(1, 8, 32)
    with pytest.raises(IndexError, match="a page that is not there"):
        cpu.page_codes(torch.zeros(4, code.num_bytes, dtype=torch.uint8), torch.tensor([[4]]), x, x, code)


@pytest.mark.parametrize("name", [n for n, one in POLICIES.items() if getattr(one, "plain", False)])
def test_what_is_called_plain_looks_at_nothing_else(name: str) -> None:
    """The same pages whether they are encoded together or one by one."""
    codec: WindowedCodec = POLICIES.get(name)()  # type: ignore[assignment]
    code = codec.code(16, 64, 64, {})
    assert code.encode is not None
    k, v = (torch.randn(2, 3, 16, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    apart = torch.stack([code.encode(k[:, n : n + 1], v[:, n : n + 1])[:, 0] for n in range(3)], 1)
    assert torch.equal(code.encode(k, v), apart)
