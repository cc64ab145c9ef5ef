"""Machines to rent and models to ask about: the shipped lists, a user's own, and what a mistake in one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.core.errors import ConfigError
from pagoda.models.shape import ModelShape
from pagoda.plan.catalogue import MachineType, as_one_head, machine_types, model_config, pick_machine
from pagoda.plan.work import Work

LLAMA = ModelShape.from_config(model_config("llama-2-7b"))


def test_an_a100_has_about_the_published_speed() -> None:
    """7B weights at 16 bit: 13.5 GB at 1.6 TB/s is 8 ms a step; 14 thousand prompt tokens a second."""
    a100 = pick_machine("a100-80g")
    cost = a100.cost(LLAMA)
    assert LLAMA.num_params == pytest.approx(6.74e9, rel=0.001)
    assert 0.008 < cost.seconds(Work(decodes=1, rows=1)) - 0.002 < 0.009
    per_token = cost.seconds(Work(chunk=4096)) - cost.seconds(Work(chunk=2048))
    assert 1 / (per_token / 2048) == pytest.approx(13_000, rel=0.1)
    assert a100.kv_blocks(LLAMA, 16) * 16 == pytest.approx(111_000, rel=0.02)


def test_decode_attention_reads_kv_once_and_shared_heads_less() -> None:
    a100, grouped = pick_machine("a100-80g"), ModelShape.from_config(model_config("mistral-7b"))
    for shape in (LLAMA, grouped):
        cost = a100.cost(shape)
        slots = cost.step_seconds(1, 1001, 0, 0.0, 1) - cost.step_seconds(1, 1, 0, 0.0, 1)
        num_bytes = 1000 * shape.kv_format(16, "bfloat16").bytes_per_token
        assert slots == pytest.approx(num_bytes / (2.039e12 * 0.8), rel=1e-6)


def test_one_wide_head_counts_the_same_bytes() -> None:
    fmt = LLAMA.kv_format(16, "bfloat16")
    assert as_one_head(fmt).block_bytes == fmt.block_bytes
    assert as_one_head(fmt).pages_per_block == 1


def test_a_users_file_adds_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "l4: {teraflops: 1, gigabytes_per_second: 2, memory: 3GB}\n"
        "box: {teraflops: 4, gigabytes_per_second: 5, memory: 6GiB, dollars_per_hour: 0.1}\n"
    )
    found = machine_types(file)
    assert found["l4"].memory_bytes == 3 * 10**9
    assert found["box"].dollars_per_hour == 0.1
    assert found["a100-80g"] == machine_types()["a100-80g"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "accepted: names with fields below"),
        ("box: 3", "box is 3; accepted: the fields memory"),
        ("box: {teraflops: 4, memory: 6GB}", "box has no gigabytes_per_second"),
        ("box: {teraflops: 4, gigabytes_per_second: 0, memory: 6GB}", "gigabytes_per_second of box is 0"),
        ("box: {teraflops: x, gigabytes_per_second: 1, memory: 6GB}", "teraflops of box is 'x'"),
        ("box: {teraflops: 4, gigabytes_per_second: 1, memory: 6GB, colour: 1}", "colour"),
        ("box: {teraflops: 4, gigabytes_per_second: 1, memory: lots}", "memory of box"),
        (": : :", "mine.yaml"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        machine_types(file)


def test_unknown_machines_and_models_too_large_are_refused() -> None:
    with pytest.raises(ConfigError, match="accepted: .*a100-80g"):
        pick_machine("abacus")
    with pytest.raises(ConfigError, match="leave no room for KV in tiny"):
        MachineType("tiny", 1, 1, 10**9).kv_blocks(LLAMA, 16)
