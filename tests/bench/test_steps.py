"""The sweep of steps: what it covers, what a slow model is spared, and the real engine's numbers."""

from __future__ import annotations

import pytest

from pagoda.bench.pace import Pace
from pagoda.bench.steps import FAR, FAR_BATCH, Sweep, measure_samples, settings, touch
from pagoda.engine.build import build
from pagoda.engine.config import EngineConfig


def test_a_slow_model_is_asked_for_less() -> None:
    for budget in (400, 4000, 400_000):
        found = list(settings(512, 4096, 32, budget))
        assert {size for size, _, _ in found} == {0, 1, 2, 4, 8, 16, 32}
        near = [one for one in found if one[:2] != (FAR_BATCH, FAR)]
        assert len(near) == len(found) - 1  # of slots at least one batch has many
        assert all(size * context <= max(budget // 8, 16 * size) for size, context, _ in near)
        assert all(chunk <= max(256, budget // 8) for _, _, chunks in found for chunk in chunks)
    assert max(chunk for _, _, chunks in found for chunk in chunks) == 3 * 512


def test_seats_and_positions_are_kept() -> None:
    found = list(settings(64, 100, 4, 10_000))
    assert max(size for size, _, _ in found) == 4
    assert all(not chunks for size, _, chunks in found if size == 4)  # no seat is left for a prompt
    assert all(chunk < 100 for _, _, chunks in found for chunk in chunks)


def test_steps_of_the_engine_are_told_as_they_were() -> None:
    config = EngineConfig(
        "lantern", max_model_len=128, max_num_seqs=4, max_num_batched_tokens=32, structured_output=False
    )
    pace = Pace(1 << 20)
    samples = measure_samples(config, seconds=0.05, pace=pace)
    assert all(min(pace.seen) <= s.pace <= max(pace.seen) for s in samples)
    assert len(samples) > 60  # one round; fewer on a busy machine, where a token takes longer
    assert all(s.seconds > 0 and 0 < s.decodes + s.chunk <= 32 and s.rows <= s.decodes + s.chunk for s in samples)
    assert {s.decodes for s in samples} >= {0, 1, 2, 4}
    long = [s for s in samples if s.chunk == 32 and not s.decodes and not s.rows]
    assert all((s.pairs - 512) % 1024 == 0 for s in long)  # 32 tokens after a whole number of such chunks


@pytest.mark.host
def test_no_step_waits_for_memory_of_pages() -> None:
    """What was touched beforehand is what the sweep's sequences get, whoever had it before."""
    options = {"memory": "4GiB", "structured_output": False, "enable_prefix_caching": False, "max_num_seqs": 4}
    built = build(EngineConfig("lantern", **options))  # type: ignore[arg-type]
    try:
        touch(built, 4096)
        before = built.engine.storage.resident_bytes()
        assert before >= 4096 * built.sizes.fmt.bytes_per_token
        sweep = Sweep(built, 1024)
        for _ in range(3):
            sweep.batch(3, 256, (512,))
        assert built.engine.storage.resident_bytes() == before
    finally:
        built.close()
