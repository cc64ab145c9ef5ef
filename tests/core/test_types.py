from __future__ import annotations

from pagoda.core.errors import choices
from pagoda.core.types import Granularity, KVFormat


def test_a_format_counts_its_bytes() -> None:
    fmt = KVFormat(num_layers=2, num_kv_heads=3, k_dim=8, v_dim=4, page_size=16, dtype="bfloat16")
    assert fmt.pages_per_block == 6
    assert fmt.page_bytes == 16 * 12 * 2
    assert fmt.block_bytes == 6 * fmt.page_bytes
    assert fmt.bytes_per_token == 2 * 3 * 12 * 2
    assert [fmt.num_rows(g) for g in Granularity] == [1, 2, 6]
    assert [fmt.pages_per_run(g) for g in Granularity] == [6, 3, 1]
    assert [fmt.blocks_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_choices_is_one_line_with_the_accepted_values() -> None:
    assert choices("dtype", "fp61", ["b", "a"]) == "unknown dtype 'fp61'; accepted: a, b"
    assert choices("memory", 3, "text") == "unknown memory 3; accepted: text"
