"""Attention that decodes pages while it multiplies them: random batches under every instruction set, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.ops._table import layer_table
from pagoda.kernels.ops.coded_attention import TOLERANCE, grid_code, grid_pages, reference
from pagoda.kernels.page_code import RawSlots

from .isas import ISAS, cpu
from .one_sequence import one_sequence
from .threads import threads


def batch(seed: int, dtype: torch.dtype, shared: int = 0) -> dict[str, Any]:
    """A random one; ``shared`` pages at the beginning are the same in all sequences."""
    rng, make = random.Random(seed), Make(dtype, seed=seed)
    size, dims = rng.choice([4, 8, 16, 16, 16, 20, 32]), (rng.choice([16, 32, 64, 96]), rng.choice([20, 32, 64, 128]))
    heads = rng.choice([(4, 4), (6, 2), (14, 2), (20, 1)])
    q_lens = [rng.choice([0, 1, 1, 1, 2, 9, 40]) for _ in range(rng.randint(1, 5))]
    kv_lens = [num + rng.choice([0, 3, 31, 150, 290, 600]) + shared * size for num in q_lens]
    starts = [rng.randint(shared * size, num) // size * size for num in kv_lens]
    table, num_pages = layer_table(
        make, q_lens, kv_lens, page_size=size, num_kv_heads=heads[1], per_head=rng.random() < 0.5, shared_blocks=shared
    )
    code, raw = grid_code(size, *dims), []
    for s, (start, num) in enumerate(zip(starts, kv_lens, strict=True)):
        room = num - start + rng.randint(0, 5)
        k, v = (make.normal(heads[1], room, dim, 1 + s)[..., 0] for dim in dims)
        raw.append(RawSlots(k.contiguous(), v.contiguous(), start))
    return {
        "q": make.normal(sum(q_lens), heads[0], dims[0]), "pages": grid_pages(make, num_pages, code), "code": code,
        "table": table, "raw": raw, "scale": dims[0] ** -0.5, "window": rng.choice([0, 0, 50]),
    }  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_batches(isa: str, dtype: torch.dtype) -> None:
    rtol, atol = TOLERANCE[dtype]
    for seed in range(12):
        arguments = batch(seed, dtype)
        got = cpu.coded_attention(**arguments, isa=isa)
        torch.testing.assert_close(got, reference(**arguments), rtol=rtol, atol=atol, msg=lambda m: f"{seed}: {m}")  # noqa: B023


@pytest.mark.skipif("avx512bf16" not in ISAS, reason="numbers are rounded to bfloat16 only where pairs are multiplied")
def test_the_bits_are_those_of_pages_decoded_before() -> None:
    for seed in range(20, 32):
        arguments = batch(seed, torch.bfloat16)
        assert torch.equal(cpu.coded_attention(**arguments), reference(**arguments)), seed


@pytest.mark.parametrize("isa", [ISAS[0], ISAS[-1]])
def test_who_else_is_there_changes_no_bit(isa: str) -> None:
    """Prefixes read once or by each; one thread or three; a sequence alone."""
    for seed in range(8):
        arguments = batch(seed, torch.bfloat16, shared=20)
        whole = cpu.coded_attention(**arguments, isa=isa)
        assert torch.equal(whole, cpu.coded_attention(**arguments, isa=isa, share_prefixes=False))
        with threads(3):
            assert torch.equal(whole, cpu.coded_attention(**arguments, isa=isa))
        for s, one in enumerate(arguments["raw"]):
            alone, mine = one_sequence(arguments, s)
            assert torch.equal(whole[mine], cpu.coded_attention(**alone | {"raw": [one]}, isa=isa)), (seed, s)


def test_sequences_that_are_not_equally_far_share_what_both_have_encoded() -> None:
    """Two forks of one prompt name the same pages, of which one has encoded more: the other reads its raw slots."""
    make, size = Make(torch.bfloat16), 16
    code = grid_code(size, 64, 64)
    table, num_pages = layer_table(make, [1, 1], [700, 700], page_size=size, num_kv_heads=2, shared_blocks=43)
    raw = [
        RawSlots(*(make.normal(2, 700 - start, 64, 2)[..., i].contiguous() for i in range(2)), start)
        for start in (640, 320)
    ]
    arguments: dict[str, Any] = {
        "q": make.normal(2, 14, 64), "pages": grid_pages(make, num_pages, code), "code": code, "table": table,
        "raw": raw, "scale": 0.125,
    }  # fmt: skip
    torch.testing.assert_close(cpu.coded_attention(**arguments), reference(**arguments), rtol=2e-2, atol=2e-2)


def test_what_does_not_fit_is_refused() -> None:
    arguments = batch(3, torch.float32)
    short = [RawSlots(one.k[:, :0].contiguous(), one.v[:, :0].contiguous(), 0) for one in arguments["raw"]]
    with pytest.raises(IndexError, match="of 0 encoded slots and room for 0 more"):
        cpu.coded_attention(**arguments | {"raw": short})
    with pytest.raises(IndexError, match="page"):
        cpu.coded_attention(**arguments | {"pages": arguments["pages"][:1]})
