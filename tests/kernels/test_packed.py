"""The packed layout: nothing is lost in it, its bytes are what was said, its order is the one drawn in packed.py."""

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.kernels.case import Make
from pagoda.kernels.packed import codes_of, lay_out, unpack
from pagoda.kernels.packed_bytes import GROUPS, packed_nbytes
from pagoda.kernels.quantize import pack, quantize_tokens

RANGES = {"int8": (-127, 127), "ternary": (-1, 1), "int4": (-8, 7), "int5": (-16, 15), "nf4": (0, 15)}


def ints(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (33, 70), (1, 1), (50, 129)])
@pytest.mark.parametrize("experts", [None, 3])
@pytest.mark.parametrize("format", list(RANGES))
def test_codes_come_back(format, experts, outputs, inputs):
    lead = (outputs,) if experts is None else (experts, outputs)
    codes, group = ints(*RANGES[format], *lead, inputs), GROUPS.get(format, (0,))[0]
    scales = torch.rand(*lead, -(-inputs // group)) if group else torch.rand(*lead)
    packed = lay_out(format, codes, scales, group=group)
    assert packed.shape == codes.shape
    assert packed.nbytes == packed_nbytes(
        format, outputs, inputs, group=group, wide_scales=group > 0, experts=experts or 1
    )
    got, got_scales, zeros = codes_of(packed)
    assert torch.equal(got.reshape(codes.shape).long(), codes)
    assert torch.equal(got_scales.reshape(scales.shape), scales)
    assert zeros is None


def test_zero_points_come_back():
    codes, zeros, scales = ints(0, 15, 20, 100), ints(0, 15, 20, 2), torch.rand(20, 2).bfloat16()
    packed = lay_out("int4", codes, scales, zeros, group=64)
    assert packed.nbytes == packed_nbytes("int4", 20, 100, group=64, zeros=True)
    got = codes_of(packed)
    assert torch.equal(got[0][0].long(), codes)
    assert torch.equal(got[1][0], scales)
    assert torch.equal(got[2][0].long(), zeros)
    expected = (codes - zeros.repeat_interleave(64, 1)[:, :100]) * scales.float().repeat_interleave(64, 1)[:, :100]
    assert torch.equal(unpack(packed), expected)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_plain_weights_come_back(format, dtype):
    weight = Make(dtype).normal(37, 51)
    packed = pack(weight, format)
    assert torch.equal(unpack(packed), weight)
    assert packed.nbytes == 48 * 4 * (51 if dtype == torch.float32 else 26)  # two of 16 bits in 32


def test_the_order_drawn_in_the_docstring():
    """Lane of row 3, block 1 of int4: inputs 8, 10, 12, 14, 9, 11, 13, 15 from the lowest bits."""
    codes = torch.zeros(16, 16, dtype=torch.int64)
    codes[3, 8:] = torch.arange(8)
    packed = lay_out("int4", codes, torch.ones(16, 1), torch.zeros(16, 1), group=32)
    lane = int.from_bytes(bytes(packed.data[0, 0, 1, 12:16].tolist()), "little")
    assert [lane >> (4 * n) & 15 for n in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]
    codes[3, :12] = torch.arange(20, 32)
    packed = lay_out("int5", codes, torch.ones(16, 1), torch.zeros(16, 1), group=48)
    lane = int.from_bytes(bytes(packed.data[0, 0, 1, 12:16].tolist()), "little")
    assert [lane >> (16 * half + 5 * n) & 31 for half in (0, 1) for n in range(3)] == [26, 28, 30, 27, 29, 31]
    codes = torch.arange(64).reshape(16, 4)
    packed = lay_out("int8", codes, torch.ones(16))
    assert (packed.data[0, 0, 0, :8].int() - 128).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("format", "options", "bound"),
    [
        ("int8", {}, 0.5 / 127),
        ("int4", {"group": 32}, 1.07 / 8),  # the far end of the range is cut at 7/8, the scale rounded
        ("int4", {"group": 64, "symmetric": False}, 2.2 / 15),
        ("int4", {"group": 128, "scale_dtype": torch.float32}, 1 / 8),
        ("int5", {"group": 48}, 1.07 / 16),
        ("int5", {"group": 96, "symmetric": False}, 2.2 / 31),
    ],
)
def test_rounding_error_of_a_weight(format, options, bound):
    """At most so many parts of the largest weight of its row (int8) or group (int4)."""
    weight = Make().normal(64, 300)
    error = (unpack(pack(weight, format, **options)) - weight).abs()
    group = options.get("group", 300)
    for start in range(0, 300, group):
        part = slice(start, start + group)
        assert (error[:, part] <= bound * weight[:, part].abs().amax(1, keepdim=True) * 1.001).all()


def test_zero_rows_and_tokens():
    weight = torch.zeros(4, 64)
    for format, options in (("int8", {}), ("int4", {"group": 32}), ("int4", {"group": 32, "symmetric": False})):
        assert torch.equal(unpack(pack(weight, format, **options)), weight)
    q, scales = quantize_tokens(torch.zeros(2, 40), 32)
    assert not q.any()
    assert not scales.any()
    assert scales.shape == (2, 2)


def test_tokens_round_half_to_even():
    q, scales = quantize_tokens(torch.tensor([[127.0, 0.5, 1.5, -2.5, -127.0]]))
    assert q.tolist() == [[127, 0, 2, -2, -127]]
    assert scales.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda w: pack(w, "int6"),
            "unknown packed format 'int6'; accepted: bf12, bf16, fp16, fp32, fp8, int4, int5, int8, nf4, ternary",
        ),
        (lambda w: pack(w, "int4", group=48), "unknown group of int4 48; accepted: 32, 64, 128"),
        (lambda w: pack(w, "int5", group=32), "unknown group of int5 32; accepted: 48, 96"),
        (lambda w: pack(w, "bf16", group=32), "bf16 has no groups; a group of 32 was asked for"),
        (lambda w: lay_out("ternary", w.int() + 5, torch.ones(4)), "ternary: integers from 5 to 5, accepted -1 to 1"),
    ],
)
def test_bad_requests(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.zeros(4, 64))
