"""What every codec of pages on disk must keep: near numbers back, fewer bytes, and nothing of what is not its own."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from pagoda.core.errors import ConfigError
from pagoda.core.types import KVFormat
from pagoda.kv.tiers.codecs import PAGE_CODECS
from pagoda.kv.tiers.codecs.base import (
    NUMBERS,
    PageCodec,
    UnreadablePages,
    _bytes,
    _floats,
    format_page_codec,
    parse_page_codec,
)

WORST = {"int8": 0.012, "cachegen": 0.18}
"""Error of a block's numbers, as a share of their root mean square."""


def fmt(dtype: str = "bfloat16", v_dim: int = 32) -> KVFormat:
    return KVFormat(num_layers=6, num_kv_heads=2, k_dim=32, v_dim=v_dim, page_size=16, dtype=dtype)


def block(of: KVFormat, seed: int = 0) -> bytes:
    """KV as it is: neighbours alike, a first token many times larger, a few large channels."""
    rng = np.random.default_rng(seed)
    width = of.k_dim + of.v_dim
    channels = rng.standard_normal((of.pages_per_block, 1, width)) * rng.lognormal(0, 1, width)
    x = channels + 0.5 * rng.standard_normal((of.pages_per_block, of.page_size, width))
    x[:, 0] *= 20
    planes = [x[:, :, : of.k_dim].reshape(len(x), -1), x[:, :, of.k_dim :].reshape(len(x), -1)]
    return _bytes(np.concatenate(planes, axis=1).astype(np.float32), of.dtype)


@pytest.fixture(params=PAGE_CODECS.names())
def codec(request: pytest.FixtureRequest) -> PageCodec:
    found = parse_page_codec(request.param)
    assert found is not None
    assert format_page_codec(found) == request.param
    return found


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("v_dim", [32, 0])
def test_near_numbers_come_back_in_fewer_bytes(codec: PageCodec, dtype: str, v_dim: int) -> None:
    of = fmt(dtype, v_dim)
    raw = block(of)
    data = codec.pack(raw, of)
    again = codec.unpack(data, of)
    x, y = _floats(raw, dtype), _floats(again, dtype)
    error = np.sqrt(np.square(x - y).mean() / np.square(x).mean())
    assert error <= WORST[format_page_codec(codec)]
    compressed = len(zstandard.ZstdCompressor(level=1).compress(data))
    assert compressed < 0.62 * len(zstandard.ZstdCompressor(level=1).compress(raw))


def test_zeros_stay_zeros_and_one_large_number_harms_only_its_row(codec: PageCodec) -> None:
    of = fmt("float32")
    x = np.zeros((of.pages_per_block, of.page_size * 64), np.float32)
    assert not np.any(_floats(codec.unpack(codec.pack(x.tobytes(), of), of), "float32"))
    x[:] = 1.0
    x[0, 5] = 1e4
    again = _floats(codec.unpack(codec.pack(x.tobytes(), of), of), "float32").reshape(x.shape)
    assert abs(again[0, 5] - 1e4) < 200
    assert np.abs(again[1:] - 1).max() < 0.02


def test_other_bytes_are_refused(codec: PageCodec) -> None:
    of = fmt()
    data = codec.pack(block(of), of)
    for wrong in (b"", data[:-1], data + b"x", data[:10], b"\xff" * len(data)):
        with pytest.raises(UnreadablePages):
            codec.unpack(wrong, of)


def test_coarser_steps_take_fewer_bytes_and_deeper_layers_are_coarser() -> None:
    of, sizes = fmt(), []
    for text in ("cachegen(step=0.1)", "cachegen", "cachegen(step=0.5)"):
        codec = parse_page_codec(text)
        assert codec is not None
        sizes.append(len(zstandard.ZstdCompressor(level=1).compress(codec.pack(block(of), of))))
    assert sizes[0] > sizes[1] > sizes[2]
    found = parse_page_codec("cachegen(step=0.5)")
    assert found is not None
    x = np.random.default_rng(1).standard_normal((6, 2, 16, 32)).astype(np.float32)
    error = np.abs(found.decode(found.encode(x), x.shape) - x).mean(axis=(1, 2, 3))
    assert error[0] < error[2] < error[5]


def test_entropy_coding_is_near_the_entropy() -> None:
    """zstandard's Huffman codes take at most a tenth more than the symbols' own entropy."""
    found = parse_page_codec("cachegen")
    assert found is not None
    x = np.random.default_rng(2).standard_normal((12, 4, 16, 64)).astype(np.float32)
    symbols = np.frombuffer(found.encode(x)[0], np.uint8)
    share = np.bincount(symbols, minlength=256) / len(symbols)
    bits = -(share[share > 0] * np.log2(share[share > 0])).sum()
    assert 8 * len(zstandard.ZstdCompressor(level=1).compress(symbols.tobytes())) / len(symbols) < 1.1 * bits


def test_text_that_means_nothing_is_refused() -> None:
    assert parse_page_codec("exact") is None
    for text, said in (
        ("gzip", "cachegen, int8"), ("int8+cachegen", "give one codec"), ("cachegen(step=3)", "from 0.02 to 2"),
        ("cachegen(bins=3)", "no parameter 'bins'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            parse_page_codec(text)
    with pytest.raises(ConfigError, match="pages in int8 are small already"):
        parse_page_codec("int8", KVFormat(1, 1, 8, 8, 16, "int8", 18))
