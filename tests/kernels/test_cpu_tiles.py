"""Products in tiles of AMX: every number of tokens in one or two; ends of tiles, panels and pieces."""

import pytest
import torch

from pagoda.kernels import _extension
from pagoda.kernels.case import Make
from pagoda.kernels.ops.packed_linear import reference
from pagoda.kernels.packed import lay_out
from pagoda.kernels.quantize import pack

from .isas import ISAS, cpu
from .threads import threads

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="no AMX on this machine, or not for this process")

FORMS = [
    ("bf16", False),
    ("bf12", False),
    ("int8", False),
    ("int8", True),
    ("fp8", False),
    ("ternary", False),
    ("ternary", True),
]
# (outputs, inputs): a panel and less, an odd number, ends inside one; inputs of whole tiles, one more, one less.
SHAPES = [(1, 64), (16, 1), (33, 65), (48, 63), (70, 130), (64, 896), (100, 1100)]
TOKENS = [1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 63, 65, 70]


def problem(form: str, outputs: int, inputs: int, tokens: int, dtype: torch.dtype = torch.bfloat16):
    make = Make(dtype)
    weight = make.normal(outputs, inputs, scale=inputs**-0.5, dtype=torch.float32)
    return make.normal(tokens, inputs), pack(weight, form), make.normal(outputs)


@pytest.mark.parametrize(("form", "dynamic"), FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_token_has_its_bits_whoever_shares_its_tile(form, dynamic, outputs, inputs):
    x, packed, bias = problem(form, outputs, inputs, 70)
    together = cpu.packed_linear(x, packed, bias, dynamic=dynamic, isa="amx")
    torch.testing.assert_close(together, reference(x, packed, bias, dynamic=dynamic), rtol=8e-3, atol=1e-3)
    for count in TOKENS:
        alone = cpu.packed_linear(x[70 - count :], packed, bias, dynamic=dynamic, isa="amx")
        assert torch.equal(alone, together[70 - count :]), count


@pytest.mark.parametrize(("form", "dynamic"), FORMS)
@pytest.mark.parametrize("sizes", [(4 << 10, 16 << 10), (48 << 10, 64 << 10), (48 << 10, 2 << 20)], ids=str)
def test_pieces_change_nothing(form, dynamic, sizes):
    """Inputs in pieces whose sums are kept, blocks of panels, slices: by the sizes of caches, which may not matter."""
    x, packed, bias = problem(form, 720, 2500, 300)
    wanted = cpu.packed_linear(x, packed, bias, dynamic=dynamic, isa="amx")
    torch.testing.assert_close(wanted, reference(x, packed, bias, dynamic=dynamic), rtol=8e-3, atol=2e-3)
    _extension._cpu.assume_caches(*sizes)
    try:
        for count in (3, 32, 40, 300):
            assert torch.equal(cpu.packed_linear(x[:count], packed, bias, dynamic=dynamic, isa="amx"), wanted[:count])
    finally:
        _extension._cpu.assume_caches(0, 0)


@pytest.mark.parametrize(("form", "dynamic"), FORMS)
def test_shares_of_threads_change_nothing(form, dynamic):
    """Slices that a thread goes on with, and those that another takes from the back; an odd panel at the end."""
    x, packed, bias = problem(form, 16 * 257 + 5, 300, 32)
    for count in (1, 20, 32):
        with threads(1):
            wanted = cpu.packed_linear(x[:count], packed, bias, dynamic=dynamic, isa="amx")
        torch.testing.assert_close(wanted, reference(x[:count], packed, bias, dynamic=dynamic), rtol=8e-3, atol=2e-3)
        for number in (2, 3, 7):
            with threads(number):
                for _ in range(3):
                    got = cpu.packed_linear(x[:count], packed, bias, dynamic=dynamic, isa="amx")
                    assert torch.equal(got, wanted), (count, number)


@pytest.mark.parametrize("form", ["int8", "ternary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_of_bytes_are_those_of_other_instruction_sets(form, dtype):
    x, packed, bias = problem(form, 90, 1000, 50, dtype)
    got = cpu.packed_linear(x, packed, bias, dynamic=True, isa="amx")
    assert torch.equal(got, cpu.packed_linear(x, packed, bias, dynamic=True, isa="avx512bf16"))
    for count in (1, 5, 33):
        assert torch.equal(cpu.packed_linear(x[:count], packed, bias, dynamic=True, isa="amx"), got[:count])


def test_logits_stay_wide():
    x, packed, _ = problem("int8", 50, 200, 20)
    wide = cpu.packed_linear(x, packed, dynamic=True, wide=True, isa="amx")
    assert wide.dtype == torch.float32
    assert torch.equal(wide, cpu.packed_linear(x, packed, dynamic=True, isa="amx").float())


def test_what_lies_behind_a_token_and_a_panel_does_not_matter():
    """Tiles end inside both: an infinity in the next token or row would make NaN of a zero."""
    x, packed, _ = problem("bf16", 32, 70, 3)
    weight = torch.randn(32, 70, generator=torch.Generator().manual_seed(1))
    weight[16] = torch.inf
    packed = lay_out("bf16", weight.bfloat16())
    x[1] = torch.inf
    got = cpu.packed_linear(x, packed, isa="amx")
    assert got[[0, 2]][:, [*range(16), *range(17, 32)]].isfinite().all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_experts_have_the_bits_of_single_products(dynamic):
    counts, generator = [5, 0, 70, 1, 33], torch.Generator().manual_seed(3)
    matrices = [pack(weight, "int8") for weight in torch.randn(len(counts), 144, 160, generator=generator)]
    x = torch.randn(sum(counts), 160, generator=generator).bfloat16()
    together = cpu.grouped_linear(x, counts, matrices, dynamic=dynamic, isa="amx")
    parts = zip(x.split(counts), matrices, strict=True)
    assert torch.equal(together, torch.cat([cpu.packed_linear(p, m, dynamic=dynamic, isa="amx") for p, m in parts]))
