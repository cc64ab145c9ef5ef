"""Grouped int4 and int5 on the tiles of AMX.

By tokens in 8 bits: the bits of the instruction set below, whatever the shapes. Exact: what the reference says,
and a token's bits are its own.
"""

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.ops.packed_linear import reference
from pagoda.kernels.packed import lay_out
from pagoda.kernels.quantize import pack

from .isas import ISAS, cpu

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX, or its system does not permit it")

FORMS = [
    {"group": 32}, {"group": 64}, {"group": 128}, {"group": 32, "symmetric": False},
    {"group": 64, "scale_dtype": torch.float32}, {"group": 128, "symmetric": False, "scale_dtype": torch.float32},
]  # fmt: skip
# Outputs that end inside a panel, a pair, a block of panels; inputs that end inside a lane, a group, a piece.
SHAPES = [(16, 32), (33, 64), (80, 1), (70, 1100), (200, 300), (48, 640), (100, 513), (35, 2500), (128, 1024)]
TOKENS = (1, 8, 12, 13, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 70, 257, 300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_tiles_have_the_bits_of_vectors(options, dtype):
    """All token counts give the first tokens of the largest one, which the bodies without tiles give too."""
    for outputs, inputs in SHAPES:
        make = Make(dtype)
        packed = pack(make.normal(outputs, inputs, scale=inputs**-0.5, dtype=torch.float32), "int4", **options)
        x, bias = make.normal(max(TOKENS), inputs), make.normal(outputs)
        wanted = cpu.packed_linear(x, packed, bias, dynamic=True, isa="avx512bf16")
        assert wanted.abs().max() > 0
        for tokens in TOKENS:
            got = cpu.packed_linear(x[:tokens], packed, bias, dynamic=True, isa="amx")
            assert torch.equal(got, wanted[:tokens]), (outputs, inputs, tokens)


EXACT = [
    *({"format": "int4", **form} for form in FORMS), {"format": "int5", "group": 48}, {"format": "int5", "group": 96},
    {"format": "int5", "group": 48, "symmetric": False},
    {"format": "int5", "group": 96, "symmetric": False, "scale_dtype": torch.float32},
]  # fmt: skip


@pytest.mark.parametrize("options", EXACT, ids=str)
def test_exact_products(options):
    """Tokens have the bits that they have among others, and those are the reference's but for roundings."""
    for outputs, inputs in SHAPES:
        make = Make(torch.bfloat16)
        packed = pack(make.normal(outputs, inputs, scale=inputs**-0.5, dtype=torch.float32), **options)
        x, bias = make.normal(100, inputs), make.normal(outputs)
        together = cpu.packed_linear(x, packed, bias, isa="amx")
        torch.testing.assert_close(together, reference(x, packed, bias), rtol=8e-3, atol=2e-3)
        for tokens in (1, 2, 3, 8, 16, 17, 31, 32, 33, 48, 65):
            alone = cpu.packed_linear(x[-tokens:], packed, bias, isa="amx")
            assert torch.equal(alone, together[-tokens:]), (outputs, inputs, tokens)


@pytest.mark.parametrize(("format", "group"), [("int4", 32), ("int4", 64), ("int4", 128), ("int5", 48), ("int5", 96)])
@pytest.mark.parametrize("zero", ["none", "least", "most"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_all_codes_exactly(format, group, zero, tokens):
    """Whole numbers whose sums float32 holds: every code less every zero point's extremes, to the last bit."""
    top = 15 if format == "int4" else 31
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, top + 1, (48, 3 * group), generator=generator)
    codes[0], codes[16], codes[:, : top + 1] = 0, top, torch.arange(top + 1)
    middle = (top + 1) // 2
    point = {"none": middle, "least": 0, "most": top}[zero]
    zeros = None if zero == "none" else torch.full((48, 3), point)
    packed = lay_out(format, codes - middle if zeros is None else codes, torch.ones(48, 3), zeros, group=group)
    x = torch.randint(-15, 16, (tokens, 3 * group), generator=generator).bfloat16()
    wanted = (x.float() @ (codes - point).float().T).bfloat16()
    assert torch.equal(cpu.packed_linear(x, packed, isa="amx"), wanted)


@pytest.mark.parametrize("tokens", [3, 50])
def test_infinity_stays_where_it_is(tokens):
    """In its token's results, also where inputs end inside a group."""
    make = Make(torch.bfloat16)
    packed, x = pack(make.normal(64, 200, dtype=torch.float32), "int4", group=64), make.normal(tokens, 200)
    x[1, 199] = torch.inf
    got = cpu.packed_linear(x, packed, isa="amx")
    assert not got[1].isfinite().any()
    assert got[[0, *range(2, tokens)]].isfinite().all()


@pytest.mark.parametrize("format", ["int4", "int5"])
@pytest.mark.parametrize("zeros", [None, 3])
def test_numbers_near_zero_are_flushed_alike(format, zeros):
    """Denormal tokens, products and sums count as zero in tiles; so they must in the vectors of one token."""
    group, generator = 96 if format == "int5" else 64, torch.Generator().manual_seed(7)
    codes = torch.randint(-8, 8, (48, 3 * group), generator=generator) + (0 if zeros is None else 8)
    points = None if zeros is None else torch.full((48, 3), zeros)
    packed = lay_out(format, codes, torch.full((48, 3), 2.0**100), points, group=group)
    sizes = torch.randint(-133, -118, (40, 3 * group), generator=generator)
    x = torch.ldexp(torch.randn(40, 3 * group, generator=generator), sizes).bfloat16()
    assert (x.abs() < 2.0**-126).any()
    together = cpu.packed_linear(x, packed, isa="amx")
    assert together.abs().max() > 2.0**-30
    assert torch.equal(torch.cat([cpu.packed_linear(row[None], packed, isa="amx") for row in x]), together)


def test_experts_have_the_bits_of_single_products():
    counts, generator = [5, 0, 70, 1, 33], torch.Generator().manual_seed(3)
    matrices = [pack(weight, "int4", group=64) for weight in torch.randn(len(counts), 144, 160, generator=generator)]
    x = torch.randn(sum(counts), 160, generator=generator).bfloat16()
    for dynamic in (False, True):
        together = cpu.grouped_linear(x, counts, matrices, dynamic=dynamic, isa="amx")
        parts = zip(x.split(counts), matrices, strict=True)
        assert torch.equal(together, torch.cat([cpu.packed_linear(p, m, dynamic=dynamic, isa="amx") for p, m in parts]))


@pytest.mark.parametrize("zero", [None, 0, 15])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_largest_codes_and_tokens(group, zero):
    """Signed bytes hold codes less their zero points: whole numbers, as a plain product gives them."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (48, 2 * group), generator=generator)
    codes[:16], codes[16:32] = 0, 15
    stored = codes - 8 if zero is None else codes
    zeros = None if zero is None else torch.full((48, 2), zero)
    packed = lay_out("int4", stored, torch.ones(48, 2), zeros, group=group)
    x = torch.randint(-127, 128, (40, 2 * group), generator=generator).float()
    x[:2], x[2:4] = 127, -127
    x[:, ::group] = 127  # so a group's scale is 1
    plain = (codes - (8 if zero is None else zero)).float()
    assert torch.equal(cpu.packed_linear(x, packed, dynamic=True, isa="amx"), x @ plain.T)


def test_one_token_with_a_nan():
    make = Make(torch.float32)
    packed, x = pack(make.normal(64, 256), "int4", group=64), make.normal(40, 256)
    x[17, 70] = torch.nan
    got = cpu.packed_linear(x, packed, dynamic=True, isa="amx")
    assert got[17].isnan().all()
    assert got.isnan().sum() == 64


@pytest.mark.parametrize("dynamic", [False, True])
def test_logits_stay_wide(dynamic):
    make = Make(torch.bfloat16)
    packed, x = pack(make.normal(50, 200, dtype=torch.float32), "int4", group=64), make.normal(20, 200)
    wide = cpu.packed_linear(x, packed, dynamic=dynamic, wide=True, isa="amx")
    assert wide.dtype == torch.float32
    assert torch.equal(wide, cpu.packed_linear(x, packed, dynamic=dynamic, isa="amx").float())


@pytest.mark.parametrize("dynamic", [False, True])
def test_threads_and_slices_change_nothing(dynamic):
    threads = torch.get_num_threads()
    make = Make(torch.bfloat16)
    packed, x = pack(make.normal(1500, 400, dtype=torch.float32), "int4", group=128), make.normal(600, 400)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(cpu.packed_linear(x, packed, dynamic=dynamic, isa="amx"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
