"""The C++ bodies of packed products: every instruction set, batch mates, threads, awkward shapes."""

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.ops import packed_embedding
from pagoda.kernels.ops.packed_linear import reference
from pagoda.kernels.packed import lay_out
from pagoda.kernels.packed_bytes import NF4_LEVELS
from pagoda.kernels.quantize import pack

from .isas import ISAS, cpu

FORMS = [
    ("fp32", {}, False), ("bf16", {}, False), ("int8", {}, False), ("int8", {}, True),
    ("ternary", {}, False), ("ternary", {}, True),
    ("int4", {"group": 32}, False), ("int4", {"group": 32}, True),
    ("int4", {"group": 64, "symmetric": False}, False), ("int4", {"group": 64, "symmetric": False}, True),
    ("int4", {"group": 128, "scale_dtype": torch.float32}, False),
    ("int4", {"group": 128, "symmetric": False, "scale_dtype": torch.float32}, True),
    ("int5", {"group": 48}, False), ("int5", {"group": 96, "symmetric": False, "scale_dtype": torch.float32}, False),
    ("fp16", {}, False), ("fp8", {}, False), ("nf4", {"group": 64}, False), ("bf12", {}, False),
]  # fmt: skip
# One token to two tiles; inputs that end inside a block, a group, a piece; outputs that end inside a panel.
SHAPES = [(33, 64), (200, 300), (80, 1), (70, 1100), (35, 2500)]
TOLERANCE = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (8e-3, 1e-3)}


def problem(form: str, options: dict, outputs: int, inputs: int, dtype: torch.dtype, tokens: int = 30):
    make = Make(dtype)
    weight = make.normal(outputs, inputs, scale=inputs**-0.5, dtype=torch.float32)
    return make.normal(tokens, inputs), pack(weight, form, **options), make.normal(outputs)


@pytest.mark.parametrize("isa", ISAS)
def test_sums_round_once_whatever_the_tile(isa):
    """A product and its sum round together where the machine can, by one token and by many: no compiler chooses."""
    near = 1 + 2.0**-12  # its square, 1 + 2^-11 + 2^-24, is no float
    packed = pack(torch.tensor([[-1 - 2.0**-11, near]]).repeat(40, 1), "fp32")
    for tokens in range(1, 30):
        got = cpu.packed_linear(torch.tensor([[1.0, near]]).repeat(tokens, 1), packed, isa=isa)
        assert got.unique().tolist() == [0.0 if isa == "base" else 2.0**-24], tokens


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("form", "options", "dynamic"), FORMS, ids=str)
def test_every_instruction_set(isa, form, options, dynamic, dtype):
    """Equal to the reference; and a token's bits are its own whoever shares the call."""
    rtol, atol = TOLERANCE[dtype]
    for outputs, inputs in SHAPES:
        x, packed, bias = problem(form, options, outputs, inputs, dtype)
        together = cpu.packed_linear(x, packed, bias, dynamic=dynamic, isa=isa)
        torch.testing.assert_close(together, reference(x, packed, bias, dynamic=dynamic), rtol=rtol, atol=atol)
        for tokens in (1, 2, 5, 7, 9, 13):
            alone = cpu.packed_linear(x[:tokens], packed, bias, dynamic=dynamic, isa=isa)
            assert torch.equal(alone, together[:tokens]), (outputs, inputs, tokens)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "options", "dynamic"), [*FORMS[1:7], *FORMS[-4:]], ids=str)
def test_many_tokens(isa, form, options, dynamic):
    """More tokens than are summed at once, with inputs in several pieces."""
    x, packed, bias = problem(form, options, 40, 2200, torch.bfloat16, tokens=541)
    got = cpu.packed_linear(x, packed, bias, dynamic=dynamic, isa=isa)
    rtol, atol = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(got, reference(x, packed, bias, dynamic=dynamic), rtol=rtol, atol=atol)
    assert torch.equal(cpu.packed_linear(x[540:], packed, bias, dynamic=dynamic, isa=isa), got[540:])


@pytest.mark.parametrize(("form", "dynamic"), [("fp32", False), ("bf16", False), ("int8", True)])
def test_threads_change_nothing(form, dynamic):
    threads = torch.get_num_threads()
    x, packed, bias = problem(form, {}, 1500, 400, torch.bfloat16)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(cpu.packed_linear(x, packed, bias, dynamic=dynamic))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("isa", ISAS)
def test_all_weights_of_a_byte(isa):
    """Every int8 code and the largest tokens: no sum saturates, no look-up is off by one."""
    codes = torch.arange(-128, 128).repeat(4).reshape(-1, 4)[:240]
    packed = lay_out("int8", codes.repeat_interleave(8, 1), torch.ones(240))
    for sign in (1.0, -1.0):
        x = torch.full((2, 32), sign * 127.0)
        expected = x @ codes.repeat_interleave(8, 1).float().T
        for dtype in (torch.float32, torch.bfloat16):
            for dynamic in (False, True):
                got = cpu.packed_linear(x.to(dtype), packed, dynamic=dynamic, isa=isa)
                assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["fp8", "fp16", "nf4"])
def test_all_numbers_of_a_small_type(isa, form):
    """Each of them, those below the normal ones too, by one token and by a tile; rows of an embedding hold the same."""
    bits = torch.arange({"fp8": 256, "fp16": 2**16, "nf4": 16}[form])
    if form == "nf4":
        wanted, packed = torch.tensor(NF4_LEVELS), lay_out(form, bits[:, None], torch.ones(16, 1), group=32)
    else:
        kind = torch.float8_e4m3fn if form == "fp8" else torch.float16
        numbers = bits.to(torch.uint8 if form == "fp8" else torch.uint16).view(kind)
        numbers = numbers[numbers.float().isfinite()]
        wanted, packed = numbers.float(), lay_out(form, numbers[:, None], torch.ones(len(numbers)))
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1, 5):
            got = cpu.packed_linear(torch.ones(tokens, 1, dtype=dtype), packed, isa=isa)
            # A result in bfloat16 below 2^-126 may become 0; halves end at 2^-24.
            assert torch.equal(got, wanted.to(dtype).expand(tokens, -1)), (dtype, tokens)
    rows = packed_embedding(torch.arange(len(wanted)), packed, torch.float32)
    assert torch.equal(rows[:, 0], wanted)


def test_views_and_stacks_of_tokens():
    x, packed, bias = problem("int8", {}, 48, 64, torch.float32, tokens=12)
    wide = torch.zeros(3, 4, 100)
    wide[..., 20:84] = x.view(3, 4, 64)
    got = cpu.packed_linear(wide[..., 20:84], packed, bias)
    assert torch.equal(got.view(12, 48), cpu.packed_linear(x, packed, bias))
    assert cpu.packed_linear(x[0], packed, bias).shape == (48,)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_nan_reaches_the_result(dynamic):
    x, packed, _ = problem("int8", {}, 16, 64, torch.float32, tokens=2)
    x[1, 40] = torch.nan
    got = cpu.packed_linear(x, packed, dynamic=dynamic)
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


def test_unusable_instruction_set():
    x, packed, _ = problem("int8", {}, 16, 64, torch.float32)
    with pytest.raises(ValueError, match="unknown instruction set 'sse'"):
        cpu.packed_linear(x, packed, isa="sse")


@pytest.mark.parametrize(("format", "group", "dynamic"), [("bf16", 0, False), ("int8", 0, True), ("int4", 32, False)])
def test_grouped_products_have_the_bits_of_single_ones(format, group, dynamic) -> None:
    generator = torch.Generator().manual_seed(3)
    counts = [5, 0, 70, 1, 13]
    weights = torch.randn(len(counts), 144, 160, generator=generator)
    matrices = [pack(weight, format, group=group) for weight in weights]
    x = torch.randn(sum(counts), 160, generator=generator).bfloat16()
    together = cpu.grouped_linear(x, counts, matrices, dynamic=dynamic)
    alone = [cpu.packed_linear(part, m, dynamic=dynamic) for part, m in zip(x.split(counts), matrices, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_a_grouped_product_needs_matrices_of_one_shape() -> None:
    matrices = [pack(torch.randn(32, 64), "int8"), pack(torch.randn(48, 64), "int8")]
    with pytest.raises(ValueError, match="differ"):
        cpu.grouped_linear(torch.randn(2, 64), [1, 1], matrices)
