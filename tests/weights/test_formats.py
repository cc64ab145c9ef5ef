"""Conformance: every weight format found in the folder, on ragged shapes, against unpack-then-multiply."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagoda.core.errors import ConfigError
from pagoda.kernels.quantize import quantize_tokens
from pagoda.weights.filling import new_filling, pack_matrix
from pagoda.weights.fillings.windows import RARE
from pagoda.weights.formats import FORMATS
from pagoda.weights.formats._bits import pack_bits, unpack_bits
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.formats.dgq import DGQ
from pagoda.weights.packed import CodedMatrix, PackedMatrix, PanelMatrix, equal
from pagoda.weights.quantization import Quantization, format_text, parse_format, parse_quantization

# Besides every format's defaults: the other members of the grammar.
VARIANTS = [
    "int4(group=32)", "int4(group=64, symmetric=True)", "int4(symmetric=True)", "int4(scale='float32')",
    "int5(group=48)", "int5(symmetric=True)",
    "nf4(group=32)", "int3(group=32, rank=4)", "int2(rank=0)", "dgq(group=32)", "bitstack(blocks=2, rank=3)",
]  # fmt: skip
TEXTS = [*FORMATS.names(), *VARIANTS]
SHAPES = [(1, 1), (3, 7), (16, 128), (33, 200), (64, 300)]  # the last groups are cut short


def weight(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.05


def pack(text: str, w: torch.Tensor, dtype: torch.dtype = torch.float32) -> PackedMatrix:
    return pack_matrix(parse_format(text), w, dtype)


def coded(text: str, w: torch.Tensor, dtype: torch.dtype = torch.float32) -> CodedMatrix:
    found = parse_format(text)
    return CodedMatrix(found, found.quantize(w), w.shape[1], dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_as_declared(text: str, shape: tuple[int, int]) -> None:
    found, packed, codes = parse_format(text), pack(text, weight(*shape)), coded(text, weight(*shape))
    exceptions = packed.nbytes - found.num_bytes(*shape)
    assert exceptions == 0 or (text == "bf12" and 0 < exceptions <= 4 * prod(shape) // RARE)
    assert codes.nbytes == found.stored_bytes(*shape)
    parts = {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in codes.codes.items()}
    assert parts == found.parts(*shape)
    assert packed.shape == codes.shape == shape
    assert torch.equal(packed.dense(), codes.dense())


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_is_within_the_bound(text: str) -> None:
    w = weight(128, 512)
    error = (pack(text, w).dense() - w).norm() / w.norm()
    if text in VARIANTS:  # bounds are of the defaults
        assert error <= 3 * parse_format(text).relative_error
        return
    assert error <= parse_format(text).relative_error
    assert error >= parse_format(text).relative_error / 3, "a bound that nothing comes near says nothing"


@pytest.mark.parametrize("text", TEXTS)
def test_zeros_and_outliers_stay_finite(text: str) -> None:
    w = weight(8, 130)
    w[2] = 0
    w[3, 5] = 40.0
    back = pack(text, w).dense()
    assert torch.isfinite(back).all()
    if parse_format(text).row_wise:
        assert (back[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_matmul_equals_unpack_then_multiply(text: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, bias = weight(5, shape[1], seed=1).to(dtype) * 20, weight(1, shape[0], seed=2)[0].to(dtype)
    for packed in (pack(text, weight(*shape), dtype), coded(text, weight(*shape), dtype)):
        wanted = torch.nn.functional.linear(_as_seen(x, packed), packed.dense(), bias)
        rtol, atol = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1.6e-2, 2e-2)}[dtype]
        torch.testing.assert_close(packed.linear(x, bias), wanted, rtol=rtol, atol=atol)
        assert packed.linear(x[:0]).shape == (0, shape[0])


def _as_seen(x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
    """Activations as a dynamic format rounds them; the others take them as they are."""
    if not packed.format.dynamic:
        return x
    group = packed.format.kernel_group if isinstance(packed, PanelMatrix) else 0
    q, scale = quantize_tokens(x, group)
    return (q * scale.repeat_interleave(group or x.shape[1], 1)[:, : x.shape[1]]).to(x.dtype)


@pytest.mark.parametrize("text", TEXTS)
def test_tiles_and_rows_are_parts_of_the_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, codes = pack(text, weight(37, 96)), coded(text, weight(37, 96))
    whole = packed.dense()
    ids = torch.tensor([[5, 0], [36, 5]])
    torch.testing.assert_close(packed.rows(ids), whole[ids])
    torch.testing.assert_close(codes.rows(ids), whole[ids])
    torch.testing.assert_close(codes.tile(3, 9), whole[3:9])
    x = weight(2, 96, seed=1)
    monkeypatch.setattr("pagoda.weights.packed.TILE_ELEMS", 96 * 5)
    monkeypatch.setattr("pagoda.weights.packed.can_open", lambda *_: False)
    torch.testing.assert_close(codes.linear(x), _as_seen(x, codes) @ whole.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [(37,), (1, 36), (20, 16, 1), (5, 6, 7, 19), (16, 16, 5)], ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_rows_may_come_in_any_parts_and_any_order(
    text: str, pieces: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagoda.weights.fillings.base.BLOCK_ELEMS", 96 * 9)
    w, codes = weight(37, 96), coded(text, weight(37, 96))
    filling = new_filling(parse_format(text), 37, 96, dtype=torch.float32)
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    for start, size in reversed(list(zip(starts, pieces, strict=True))):
        rows = CodedMatrix(codes.format, codes.codes_of(start, start + size), 96, torch.float32)
        filling.put(start, rows if parse_format(text).row_wise and start % 2 else w[start : start + size])
    assert equal(filling.finish(torch.float32), pack(text, w))


@pytest.mark.parametrize("text", TEXTS)
def test_rows_are_quantized_one_by_one_where_it_says_so(text: str) -> None:
    found, w = parse_format(text), weight(24, 100)
    if not found.row_wise:
        pytest.skip("quantizes the matrix as a whole")
    whole, parts = found.quantize(w), [found.quantize(w[:7]), found.quantize(w[7:])]
    for name, tensor in whole.items():
        assert torch.equal(tensor.view(torch.uint8), torch.cat([p[name].view(torch.uint8) for p in parts]))


@pytest.mark.parametrize("text", TEXTS)
def test_save_and_load(text: str, tmp_path: Path) -> None:
    packed = coded(text, weight(16, 70))
    save_file({n: t.contiguous() for n, t in packed.codes.items()}, tmp_path / "codes.safetensors")
    again = CodedMatrix(packed.format, load_file(tmp_path / "codes.safetensors"), 70, torch.float32)
    filling = new_filling(packed.format, 16, 70, dtype=torch.float32)
    filling.put(0, again)
    assert equal(filling.finish(torch.float32), pack(text, weight(16, 70)))


@pytest.mark.parametrize("text", TEXTS)
def test_quantizing_what_was_unpacked_changes_little(text: str) -> None:
    if not parse_format(text).row_wise:
        pytest.skip("fits the matrix as a whole: what it gives is not a fixed point")
    once = pack(text, weight(16, 256)).dense()
    twice = pack(text, once).dense()
    assert (twice - once).norm() <= 0.6 * parse_format(text).relative_error * once.norm() + 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_is_as_near_as_its_grid(symmetric: bool) -> None:
    w = weight(16, 256)
    packed = coded(f"int4(group=32, symmetric={symmetric})", w)
    steps = packed.codes["scale"].float().abs().repeat_interleave(32, 1)
    worst = (packed.dense() - w).abs() / steps
    # Beyond the end of the grid (the side away from the largest value) up to a whole step is lost.
    assert worst.max() <= (1.03 if symmetric else 0.55)


def test_int8_is_within_half_a_step() -> None:
    w = weight(16, 256)
    packed = pack("int8", w)
    assert ((packed.dense() - w).abs() <= w.abs().amax(1, keepdim=True) / 254 * 1.001).all()


def test_ternary_rows_stay_exact() -> None:
    w = torch.tensor([[0.3, -0.3, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0], [-2.0, 2.0, 2.0, -2.0]])
    assert torch.equal(pack("ternary", w).dense(), w)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_low_rank_term_corrects(bits: int) -> None:
    w = weight(96, 256) + weight(96, 3, seed=5) @ weight(3, 256, seed=6) * 20
    errors = [(pack(f"int{bits}(rank={rank})", w).dense() - w).norm() for rank in (0, 4, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.8 * errors[0]


def test_dgq_rows_are_eight_bit_integers() -> None:
    packed = coded("dgq(group=32)", weight(16, 200))
    assert isinstance(packed.format, DGQ)
    integers = packed.format.values(packed.codes, 200)
    assert integers.abs().max() <= 127
    assert torch.equal(integers, integers.round())


def test_blocks_of_a_stack_add_up() -> None:
    w = weight(48, 160)
    packed = coded("bitstack(blocks=6)", w)
    errors = []
    for count in range(6, 0, -1):
        kept = {name: t for name, t in packed.codes.items() if int(name[-1]) < count}
        errors.append((packed.format.dequantize(kept, 160) - w).norm())
    assert errors == sorted(errors)
    assert errors[0] < 0.25 * errors[-1]


def test_grammar() -> None:
    text = "int4(embed='none', group=64, symmetric=True)"
    found = parse_format(text)
    assert format_text(found) == text
    assert (format_text(None), format_text(parse_format("int4(group=128)"))) == ("none", "int4")
    quantization = parse_quantization(text)
    assert quantization.of("layers.0.attn.qkv.weight", "linear") == found
    assert quantization.of("embed.weight", "embed") is None
    assert quantization.of("norm.weight", "plain") is None
    assert parse_quantization("int4").of("embed.weight", "embed") == parse_format("int8")
    assert parse_quantization("w4a8").of("embed.weight", "embed") == parse_format("w8a8")
    assert parse_quantization("nf4(embed='same')").of("embed.weight", "embed") == parse_format("nf4(embed='same')")
    assert parse_quantization("none").is_plain
    mixed = Quantization(found, None, {"a": None})
    assert mixed.of("a", "linear") is None
    assert str(mixed) == "none"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int6", r"unknown quantization 'int6'; accepted: auto, bf12, bf16, bitstack, .*int4.*none"),
        ("int5(group=64)", r"unknown int5 group .*64.*accepted: 48, 96"),
        ("int4(group=48)", r"unknown int4 group .*48.*accepted: 32, 64, 128"),
        ("int4(bits=3)", r"int4 has no parameter 'bits'; accepted: embed, group, symmetric"),
        ("int4(symmetric=1)", r"int4\(symmetric=1\): expected bool"),
        ("int4+int8", "a matrix has one format"),
        ("int4(embed='x')", "unknown quantization 'x'"),
        ("int4(", "does not read as"),
    ],
)
def test_bad_texts_say_what_is_accepted(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_quantization(text)
    assert "\n" not in str(caught.value)


def test_every_format_is_a_frozen_dataclass_named_after_its_file() -> None:
    for name, cls in FORMATS.items():
        assert isinstance(cls, type)
        assert issubclass(cls, WeightFormat)
        assert cls.name == name
        assert dataclasses.is_dataclass(cls)
        assert cls() == cls()


def test_bytes_need_no_torch() -> None:
    code = (
        "import sys; from pagoda.weights.formats import FORMATS;"
        "from pagoda.weights.quantization import parse_quantization as p;"
        "[p(n).linear.num_bytes(100, 300) for n in FORMATS.names()];"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_five_bits_are_read_wherever_they_lie_in_a_file() -> None:
    codes = torch.randint(0, 32, (3, 50), dtype=torch.uint8)
    packed = pack_bits(codes, 5)
    odd = torch.empty(packed.numel() + 1, dtype=torch.uint8)[1:].view(packed.shape)
    odd.copy_(packed)
    assert torch.equal(unpack_bits(odd, 5, 50), codes)
