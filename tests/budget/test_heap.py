"""The C allocator's own figure follows what is allocated."""

from __future__ import annotations

import ctypes

import pytest

from pagoda.budget import heap


def test_heap_bytes_follow_malloc() -> None:
    if heap.heap_bytes() == 0:
        pytest.skip("this C library has no mallinfo2")
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    before = heap.heap_bytes()
    block = libc.malloc(64 << 20)
    assert heap.heap_bytes() - before >= 64 << 20
    libc.free(ctypes.c_void_p(block))
    assert heap.heap_bytes() - before < 8 << 20


def test_without_mallinfo2_it_says_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        def __init__(self, name: str | None) -> None:
            pass

    heap._mallinfo2.cache_clear()
    monkeypatch.setattr(heap.ctypes, "CDLL", Bare)
    assert heap.heap_bytes() == 0
    assert not heap.trim_heap()
    heap._mallinfo2.cache_clear()


def test_trimming_gives_pages_back() -> None:
    assert heap.trim_heap() in (True, False)
    assert heap.trim_heap() is False  # nothing is left to give
