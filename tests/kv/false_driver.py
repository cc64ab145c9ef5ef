"""A device's memory in the host's: addresses that are written without memory behind them are found out."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter

import torch
from torch import Tensor

from pagoda.core.errors import BudgetError


class FalseDriver:
    """``Driver`` over one mapping; ``most_chunks`` is all the memory that there is."""

    chunk_bytes = 2 << 20

    def __init__(self, most_chunks: int = 1 << 30) -> None:
        self.calls: Counter[str] = Counter()
        self._free_chunks, self._handles = most_chunks, set[int]()
        self._behind: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}

    def reserve(self, num_bytes: int) -> int:
        base = (1 + 1024 * len(self._maps)) * self.chunk_bytes  # nobody reads at addresses but through the tensor
        self._maps[base] = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return base

    def free(self, address: int, num_bytes: int) -> None:
        assert not any(address <= behind < address + num_bytes for behind in self._behind)
        self.calls["free"] += 1

    def create(self) -> int:
        if not self._free_chunks:
            raise BudgetError("none left")
        self.calls["create"] += 1
        self._free_chunks -= 1
        self._handles.add(handle := self.calls["create"])
        return handle

    def release(self, handle: int) -> None:
        assert handle not in self._behind.values()
        self._handles.remove(handle)
        self._free_chunks += 1
        self.calls["release"] += 1

    def map(self, address: int, handle: int) -> None:
        assert handle in self._handles
        assert address % self.chunk_bytes == 0
        assert address not in self._behind
        self._behind[address] = handle

    def unmap(self, address: int) -> None:
        del self._behind[address]
        base = max(base for base in self._maps if base <= address)
        what_others_left = b"\x55" * self.chunk_bytes
        self._maps[base][address - base : address - base + self.chunk_bytes] = what_others_left

    def has_memory(self, address: int) -> bool:
        """Whether reading there would go well."""
        return address in self._behind

    def wait(self) -> None:
        pass

    def tensor(self, address: int, num_bytes: int, owner: object) -> Tensor:
        memory = type("Memory", (ctypes.c_char * num_bytes,), {}).from_buffer(self._maps[address])
        memory.owner = owner  # as long as there is a tensor over it
        return torch.frombuffer(memory, dtype=torch.uint8)
