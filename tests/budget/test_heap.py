from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from pagoda.budget import heap
from pagoda.core.units import MIB


@pytest.fixture(autouse=True)
def forget_what_was_found() -> Iterator[None]:
    heap._mallinfo2.cache_clear()
    yield
    heap._mallinfo2.cache_clear()


def test_the_heap_is_seen_to_grow_and_to_shrink() -> None:
    if heap._mallinfo2() is None:
        pytest.skip("this C library has no mallinfo2")
    malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    before = heap.heap_bytes()
    size = before + 64 * MIB  # more than all that was taken, so that nothing freed by other tests can hold it
    block = malloc(size)  # large blocks are mapped apart and go back at once; nobody touches it
    assert heap.heap_bytes() - before >= size
    free(block)
    assert heap.heap_bytes() - before < 32 * MIB
    assert heap.trim_heap() in (True, False)


class NoSuchLibrary:
    """A C library without the functions of glibc."""

    def __init__(self, name: None) -> None:
        pass


class NotLoadable:
    def __init__(self, name: None) -> None:
        raise OSError("no libc")


@pytest.mark.parametrize("library", [NoSuchLibrary, NotLoadable])
def test_another_c_library_says_nothing(monkeypatch: pytest.MonkeyPatch, library: type) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert heap.heap_bytes() == 0
    assert heap.trim_heap() is False
