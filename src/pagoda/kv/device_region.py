"""Address space on a CUDA device that memory is put behind, chunk by chunk, and taken away from again.

    addresses | c0 | c1 | c2 | c3 | c4 | …      reserved once, cost nothing
    memory    | ██ | ██ |    | ██ |             chunks of 2 MiB that at least one holder needs

What ``mmap`` and ``madvise`` are on a CPU: tensors over the whole region stay valid while it grows and shrinks, so
pages are never copied and a pool takes only what it uses. CUDA's virtual memory management, as vAttention uses it for
KV (Prabhu et al. 2024, https://arxiv.org/abs/2405.04437, section 5).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import BudgetError, ConfigError
from ..core.units import format_bytes

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
EDGE_BYTES = 2 * (2 << 20)  # what a region holds beside the bytes asked for: half a chunk at the end, and the stand-in


class Driver(Protocol):
    """The calls that a region makes; addresses and sizes are multiples of ``chunk_bytes``."""

    chunk_bytes: int

    def reserve(self, num_bytes: int) -> int: ...
    def free(self, address: int, num_bytes: int) -> None: ...
    def create(self) -> int: ...
    def release(self, handle: int) -> None: ...
    def map(self, address: int, handle: int) -> None: ...
    def unmap(self, address: int) -> None: ...
    def wait(self) -> None: ...
    def tensor(self, address: int, num_bytes: int, owner: object) -> Tensor: ...


class DeviceRegion:
    """``num_bytes`` of address space. Ranges of bytes are held and let go in pairs; a chunk has memory while a range
    that touches it is held, and memory that is put there reads as zeros.

    Ops pad ragged batches with page 0 and with ids of pages that are gone, and read what they then mask. On a CPU such
    an address reads as zeros; here it would end the process. So one chunk more stands in for the first chunk and for
    every chunk that was let go, as long as anything is held.
    """

    def __init__(self, num_bytes: int, driver: Driver) -> None:
        self._driver, chunk = driver, driver.chunk_bytes
        self.num_bytes = -(-num_bytes // chunk) * chunk
        self._addresses = addresses = _Addresses(driver, self.num_bytes)
        self._base = addresses.base
        self._holders: dict[int, int] = {}  # chunk -> held ranges that touch it
        self._handles: dict[int, int] = {}  # chunk -> the memory behind it
        self._stand_in: int | None = None
        self._stood_in: set[int] = set()  # chunks with the stand-in behind them
        first = addresses.create()  # torch asks whose address it is, and only one with memory has an answer
        addresses.map(self._base, first)
        self.bytes = driver.tensor(self._base, self.num_bytes, addresses)
        addresses.unmap(self._base)
        addresses.release(first)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of device memory behind the region now."""
        return (len(self._handles) + (self._stand_in is not None)) * self._chunk

    def missing_bytes(self, ranges: Iterable[tuple[int, int]]) -> int:
        """What ``hold`` of these ranges (first byte, last byte + 1) would add to ``mapped_bytes``."""
        chunks = self._count(ranges).keys()
        more = len(chunks - self._handles.keys())
        return (more + (self._stand_in is None and bool(chunks))) * self._chunk

    def hold(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Memory for these ranges. Raises BudgetError if the device has none left; nothing is held then."""
        counts = self._count(ranges)
        missing = sorted(counts.keys() - self._handles.keys())
        made: list[int] = []
        try:
            for _ in range(len(missing) + (self._stand_in is None and bool(counts))):
                made.append(self._addresses.create())
        except BudgetError:
            for handle in made:
                self._addresses.release(handle)
            raise
        for chunk in missing:
            self._put(chunk, made.pop())
        if made:
            self._stand_in = made.pop()
            if 0 not in self._handles:
                self._stand(0)
        for chunk, num in counts.items():
            self._holders[chunk] = self._holders.get(chunk, 0) + num

    def let_go(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Ranges that were held are not needed any more: returns the bytes that went back to the device."""
        before, idle = self.mapped_bytes, []
        for chunk, num in self._count(ranges).items():
            self._holders[chunk] -= num
            if not self._holders[chunk]:
                del self._holders[chunk]
                idle.append(chunk)
        if idle:
            self._driver.wait()  # kernels that still read these addresses
        for chunk in idle:
            self._drop(chunk)
            if self._holders:
                self._stand(chunk)
        if not self._holders:
            self._dismiss()
        return before - self.mapped_bytes

    def close(self) -> None:
        """All memory goes back to the device; the addresses go with the last tensor over them, not to be read."""
        self._driver.wait()
        self._holders.clear()
        for chunk in list(self._handles):
            self._drop(chunk)
        self._dismiss()
        self.bytes = self.bytes[:0]

    @property
    def _chunk(self) -> int:
        return self._driver.chunk_bytes

    def _count(self, ranges: Iterable[tuple[int, int]]) -> dict[int, int]:
        """How many of the ranges touch each chunk that any does."""
        counts: dict[int, int] = {}
        for start, stop in ranges:
            for chunk in range(start // self._chunk, -(-stop // self._chunk)):
                counts[chunk] = counts.get(chunk, 0) + 1
        return counts

    def _put(self, chunk: int, handle: int) -> None:
        if chunk in self._stood_in:
            self._stood_in.remove(chunk)
            self._driver.wait()
            self._addresses.unmap(self._base + chunk * self._chunk)
        self._addresses.map(self._base + chunk * self._chunk, handle)
        self._handles[chunk] = handle
        self.bytes[chunk * self._chunk : (chunk + 1) * self._chunk].zero_()

    def _drop(self, chunk: int) -> None:
        self._addresses.unmap(self._base + chunk * self._chunk)
        self._addresses.release(self._handles.pop(chunk))

    def _stand(self, chunk: int) -> None:
        assert self._stand_in is not None
        self._addresses.map(self._base + chunk * self._chunk, self._stand_in)
        self._stood_in.add(chunk)

    def _dismiss(self) -> None:
        while self._stood_in:
            self._addresses.unmap(self._base + self._stood_in.pop() * self._chunk)
        if self._stand_in is not None:
            self._addresses.release(self._stand_in)
            self._stand_in = None


class _Addresses:
    """Reserved addresses and the memory behind them. What is left of both when the region and the last tensor over them
    are gone (an engine that nobody closed) goes back then, after the kernels that still read there.
    """

    def __init__(self, driver: Driver, num_bytes: int) -> None:
        self._driver, self.base = driver, driver.reserve(num_bytes)
        self._made, self._mapped = set[int](), set[int]()
        left = weakref.finalize(self, _give_back, driver, self.base, num_bytes, self._made, self._mapped)
        left.atexit = False  # the process gives everything back by itself

    def create(self) -> int:
        handle = self._driver.create()
        self._made.add(handle)
        return handle

    def release(self, handle: int) -> None:
        self._driver.release(handle)
        self._made.remove(handle)

    def map(self, address: int, handle: int) -> None:
        self._driver.map(address, handle)
        self._mapped.add(address)

    def unmap(self, address: int) -> None:
        self._driver.unmap(address)
        self._mapped.remove(address)


def _give_back(driver: Driver, base: int, num_bytes: int, made: set[int], mapped: set[int]) -> None:
    if mapped:
        driver.wait()
    for address in mapped:
        driver.unmap(address)
    for handle in made:
        driver.release(handle)
    driver.free(base, num_bytes)


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Flags(ctypes.Structure):
    _fields_ = [("compression", ctypes.c_ubyte), ("rdma", ctypes.c_ubyte), ("usage", ctypes.c_ushort),
                ("reserved", ctypes.c_ubyte * 4)]  # fmt: skip


class _Prop(ctypes.Structure):
    """CUmemAllocationProp; type 1: pinned device memory, the only one there is."""

    _fields_ = [("type", ctypes.c_int), ("handle_types", ctypes.c_int), ("location", _Location),
                ("win32", ctypes.c_void_p), ("flags", _Flags)]  # fmt: skip


class _Access(ctypes.Structure):
    """CUmemAccessDesc; flags 3: read and write."""

    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


class CudaDriver:
    """CUDA's virtual memory management on one device (driver API, "Virtual Memory Management").

    Raises ConfigError where the driver has none.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()
        self._device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise ConfigError(f"device {device}: no CUDA driver library ({error}); use device='cpu'") from error
        location = _Location(1, self._device.index)
        self._prop, self._access = _Prop(1, 0, location), _Access(location, 3)
        num = ctypes.c_size_t()
        self._call("cuMemGetAllocationGranularity", ctypes.byref(num), ctypes.byref(self._prop), 0)
        self.chunk_bytes = num.value

    def reserve(self, num_bytes: int) -> int:
        address = ctypes.c_uint64()
        zero = ctypes.c_uint64(0)
        self._call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(num_bytes), ctypes.c_size_t(0), zero,
                   zero)  # fmt: skip
        return address.value

    def free(self, address: int, num_bytes: int) -> None:
        self._call("cuMemAddressFree", ctypes.c_uint64(address), ctypes.c_size_t(num_bytes))

    def create(self) -> int:
        """A chunk of memory: its handle. Raises BudgetError if there is none."""
        size, handle, zero = ctypes.c_size_t(self.chunk_bytes), ctypes.c_uint64(), ctypes.c_uint64(0)
        self._call("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(self._prop), zero)
        return handle.value

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", ctypes.c_uint64(handle))

    def map(self, address: int, handle: int) -> None:
        """The chunk of memory behind the chunk of addresses that begins there."""
        size, at, zero = ctypes.c_size_t(self.chunk_bytes), ctypes.c_uint64(address), ctypes.c_uint64(0)
        self._call("cuMemMap", at, size, ctypes.c_size_t(0), ctypes.c_uint64(handle), zero)
        self._call("cuMemSetAccess", at, size, ctypes.byref(self._access), ctypes.c_size_t(1))

    def unmap(self, address: int) -> None:
        self._call("cuMemUnmap", ctypes.c_uint64(address), ctypes.c_size_t(self.chunk_bytes))

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def tensor(self, address: int, num_bytes: int, owner: object) -> Tensor:
        """uint8 ``[num_bytes]`` at an address that has memory; it keeps ``owner`` alive."""
        return torch.as_tensor(_Bytes(address, num_bytes, owner), device=self._device)

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._cuda, name)(*args)
        if code == OUT_OF_MEMORY:
            free = torch.cuda.mem_get_info(self._device)[0]
            raise BudgetError(
                f"the device has no memory left for KV pages ({format_bytes(free)} free): other programs took it since "
                "the budget was stated; ask for less"
            )
        if code:
            raise ConfigError(f"{name} failed with CUDA error {code} on {self._device}; use device='cpu'")


class _Bytes:
    """Addresses as torch reads them (CUDA array interface, version 3)."""

    def __init__(self, address: int, num_bytes: int, owner: object) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip
