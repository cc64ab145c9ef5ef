"""Working memory of a sampling step stays under what `scratch_bytes` says, measured by torch's own allocator events."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pagoda.sampling import scratch
from pagoda.sampling.chain import _Group
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.scratch import scratch_bytes, slices
from pagoda.sampling.state import SampleState

VOCAB = 40_000


def peak_bytes(call) -> int:
    """Most bytes of CPU tensors alive at once that the call allocated.

    What others left is collected before, and a peak is counted from the lowest point before it: a tensor of another
    test that is freed within the call would make its peak look lower.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    alive = lowest = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            lowest = min(lowest, alive)
            peak = max(peak, alive - lowest)
    return peak


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0.7, "min_p": 0.1},
        {"top_k": 50},
        {"top_k": 39_000},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"typical_p": 0.9},
        {"top_p": 0.9, "typical_p": 0.9, "logprobs": 5, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_peak_is_under_the_bound(fields, monkeypatch):
    monkeypatch.setattr(scratch, "CPU_SLICE_BYTES", 2**22)
    num_rows = 24
    logits = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(0))
    states = [SampleState(SamplingParams(**fields), [1, 2, 3], seed=i) for i in range(num_rows)]
    peak = peak_bytes(lambda: Sampler().sample(logits, states))
    assert 0 < peak <= scratch_bytes(num_rows, VOCAB, with_logprobs="logprobs" in fields)


def test_slices_cover_the_rows_in_order(monkeypatch):
    monkeypatch.setattr(scratch, "CPU_SLICE_BYTES", 100)
    assert [list(part) for part in slices(range(7), 30, "cpu")] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(part) for part in slices(range(2), 1000, "cpu")] == [[0], [1]]
    assert len(list(slices(range(7), 30, "cuda"))) == 1
    assert scratch_bytes(1, 10) <= scratch_bytes(8, 10) <= scratch_bytes(8, 10, with_logprobs=True)


def test_what_the_kernel_keeps_of_a_small_vocabulary_is_counted():
    """Values with their ids, 16 bytes each, beyond torch's allocator: of up to 64 times the width all are kept."""
    assert _Group("ranked", 1024, has_k=True).bytes_per_row(64 * 1024) >= (4 + 16) * 64 * 1024
    assert _Group("ranked", 1024, has_k=True).bytes_per_row(150_000) < 6 * 150_000
