from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.core.errors import ConfigError
from pagoda.core.units import GIB, MIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("512 B", 512),
        ("2GiB", 2 * GIB),
        ("2g", 2 * GIB),
        ("2Gi", 2 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("1.5GiB", 3 * GIB // 2),
        ("512M", 512 * MIB),
        ("512 mib", 512 * MIB),
        (".5k", 512),
        ("3. KB", 3000),
        ("1T", 1 << 40),
        ("0.1KiB", 102),  # 102.4: the part of a byte is dropped
        ("0.0000001 TB", 100_000),  # exact: no float in between
        (" 7 MB ", 7_000_000),
    ],
)
def test_parse_bytes_reads_every_accepted_form_exactly(text: str | int, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "bad", ["", "GiB", "-1", "-2GiB", "1.5", "2 GiG", "2 GiB or so", "1e9", "٣GiB", "1_000", -1, True, 1.5, None]
)
def test_parse_bytes_refuses_the_rest_and_lists_what_it_takes(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"kv size.*accepted: .*2GiB.*512M") as caught:
        parse_bytes(bad, what="kv size")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@given(st.integers(0, 1 << 70))
def test_whole_bytes_survive_as_text(num_bytes: int) -> None:
    assert parse_bytes(str(num_bytes)) == num_bytes
    assert parse_bytes(f"{num_bytes}KiB") == num_bytes * 1024


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (20 * MIB, "20.0 MiB"),
        (1023 * MIB, "1023 MiB"),
        (1024 * MIB - 1, "1.00 GiB"),
        (-3 * GIB, "-3.00 GiB"),
        (5000 * 1024 * GIB, "5000 TiB"),
        (10_234, "9.99 KiB"),
        (10_235, "10.0 KiB"),
    ],
)
def test_format_bytes_keeps_three_digits(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(0, 1 << 50))
def test_formatted_bytes_read_back_within_one_percent(num_bytes: int) -> None:
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= max(1, num_bytes // 100)
