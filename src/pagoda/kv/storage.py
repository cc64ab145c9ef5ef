"""The bytes behind page ids.

On a CPU: one anonymous mapping of ``max_blocks`` blocks. Pages that were never written cost nothing, and blocks that
leave the pool give their bytes back to the system (MADV_DONTNEED), so that the resident size follows the pool.
On a CUDA device the same with chunks of 2 MiB (``device_region``): a chunk has memory while the pool has one of its
blocks. What chunks at the edges hold beside the pool's blocks is measured and leased too (``held_bytes``).

A decode step reads every page of its context, each from another memory page: on small ones a core spends as long on
finding their addresses as on their bytes (4096 tokens of a 0.5B model: 14 GB/s on two cores, 30 on huge pages). A
storage may therefore ask for huge ones. The pool hands out fresh blocks in ascending order, so at most one huge page,
the last, holds bytes that nobody leased yet: ``slack_bytes``, which the owner leases beside its blocks. Where blocks
left the pool, small pages are asked for again, or a hole would be filled as soon as one of them returns.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from ..core.errors import BudgetError, ConfigError
from ..core.types import KVFormat
from ..kernels.layout import PageLayout
from ..kernels.memory import HUGE_BYTES, spread
from ..kernels.ops import close_gaps, copy_pages, kv_compact
from ..kernels.ops._paged import gather
from .codecs.base import codec_of, kv_dtypes
from .compaction import Gaps
from .device_region import CudaDriver, DeviceRegion, Driver
from .table import SlotMoves

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PageStorage:
    """Pages as one tensor ``pages`` [num_pages, page_elems] of ``layout.dtype``; page p of block b has id b * P + i.

    huge    ask for huge pages on a CPU; only for one who hands out blocks in ascending order.
    driver  who gives memory on another device (default: CUDA's own).
    """

    def __init__(
        self,
        fmt: KVFormat,
        max_blocks: int,
        device: torch.device | str = "cpu",
        *,
        huge: bool = False,
        driver: Driver | None = None,
    ) -> None:
        codec = codec_of(fmt) if fmt.dtype in kv_dtypes() else None
        if max_blocks < 1:
            raise ConfigError(f"storage of {max_blocks} blocks; accepted: at least 1 block of {fmt.block_bytes} bytes")
        self.fmt, self.max_blocks, self.device = fmt, max_blocks, torch.device(device)
        self.layout = PageLayout(fmt.page_size, fmt.slot_bytes, 0, torch.uint8)  # bytes: see ``window_view``
        if fmt.dtype in kv_dtypes():
            self.layout = PageLayout(fmt.page_size, fmt.k_dim, fmt.v_dim, DTYPES.get(fmt.dtype, torch.uint8), codec)
        assert self.layout.page_bytes == fmt.page_bytes, f"{fmt} counts other bytes than {self.layout}"
        self._map: mmap.mmap | None = None
        self._region: DeviceRegion | None = None
        self.slack_bytes = 0  # bytes that may be resident beside those of the blocks handed out
        if self.device.type == "cpu" and driver is None:
            self._map = _reserve(max_blocks * fmt.block_bytes)
            if _advise(self._map, huge):
                self.slack_bytes = HUGE_BYTES
            flat = torch.frombuffer(self._map, dtype=self.layout.dtype)
            self.pages = flat.view(-1, self.layout.page_elems)
            spread(flat.data_ptr(), len(self._map))
        else:
            self._region = DeviceRegion(max_blocks * fmt.block_bytes, driver or CudaDriver(self.device))
            flat = self._region.bytes[: max_blocks * fmt.block_bytes].view(self.layout.dtype)
            self.pages = flat.view(-1, self.layout.page_elems)

    @property
    def is_chunked(self) -> bool:
        """Whether memory has to be put behind blocks before they are used (``hold_blocks``)."""
        return self._region is not None

    def held_bytes(self, num_blocks: int, more: Sequence[int] = ()) -> int:
        """Bytes to lease for a pool of so many blocks, once it has the blocks ``more`` (ids) beside them."""
        if self._region is not None:
            return self._region.mapped_bytes + self._region.missing_bytes(self._ranges(more))
        num_blocks += len(more)
        return num_blocks * self.fmt.block_bytes + (self.slack_bytes if num_blocks else 0)

    def hold_blocks(self, blocks: Sequence[int]) -> None:
        """The pool is about to have these blocks. Raises BudgetError where the device has no memory for them."""
        if self._region is not None:
            self._region.hold(self._ranges(blocks))

    def release_blocks(self, blocks: Iterable[int]) -> int:
        """Gives the bytes of these blocks, which have left the pool, back to the system; their content is lost. Returns
        how many bytes that were: on a CPU the whole memory pages inside runs of neighbouring blocks, elsewhere the
        chunks that no block of the pool touches any more.
        """
        if self._region is not None:
            return self._region.let_go(self._ranges(blocks))
        if self._map is None:
            return 0
        size, num_bytes = self.fmt.block_bytes, 0
        for first, last in _spans(sorted(blocks)):
            start = -(-first * size // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (last + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if stop > start:
                self._decline_huge(start, stop)
                self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
                num_bytes += stop - start
        return num_bytes

    def drop_slack(self, num_blocks: int) -> None:
        """Only small pages from now on; what is resident behind the first ``num_blocks`` blocks, all that were ever
        used, goes back to the system.
        """
        self.slack_bytes, start = 0, -(-num_blocks * self.fmt.block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._map is not None and hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
            if start < len(self._map):
                self._map.madvise(mmap.MADV_DONTNEED, start, len(self._map) - start)

    def _decline_huge(self, start: int, stop: int) -> None:
        """Small pages from now on in every huge page that these bytes of the mapping touch."""
        if self._map is not None and self.slack_bytes:
            ahead = self.pages.data_ptr() % HUGE_BYTES
            start = max(0, (start + ahead) // HUGE_BYTES * HUGE_BYTES - ahead)
            stop = min(len(self._map), -(-(stop + ahead) // HUGE_BYTES) * HUGE_BYTES - ahead)
            self._map.madvise(mmap.MADV_NOHUGEPAGE, start, stop - start)

    def gather(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """K and V of these pages ``[N, n]``, float32 ``[N, n * page_size, dim]`` each (V None for latent pages)."""
        return gather(self.pages, self.layout, ids, torch.float32)

    def keys(self, ids: torch.Tensor) -> torch.Tensor:
        """Those of ``gather`` alone."""
        return gather(self.pages, self.layout, ids, torch.float32, values=False)[0]

    def run_copies(self, copies: Sequence[tuple[int, int]]) -> None:
        """Whole pages (source, target): what ``KVManager.take_copies`` gave. All reads come first."""
        if copies:
            index = torch.tensor(copies, dtype=torch.int32, device=self.device)
            copy_pages(self.pages, index[:, 0].contiguous(), index[:, 1].contiguous())

    def run_moves(self, moves: SlotMoves | Gaps | Sequence[tuple[int, int, int, int]]) -> None:
        """Single slots (source page, slot, target page, slot): what ``KVManager.keep`` gave. All reads come first."""
        if not len(moves):
            return
        if isinstance(moves, Gaps):
            bases, mask = (torch.from_numpy(x).to(self.device) for x in (moves.bases, moves.mask))
            close_gaps(self.pages, self.layout, bases, mask)
            return
        if isinstance(moves, SlotMoves):
            columns = [moves.src_pages, moves.src_slots, moves.dst_pages, moves.dst_slots]
        else:
            columns = list(np.array(moves, np.int32).T)
        index = [torch.from_numpy(np.ascontiguousarray(column)).to(self.device) for column in columns]
        kv_compact(self.pages, self.layout, *index)

    @property
    def reserved_bytes(self) -> int:
        """Bytes of address space."""
        return self.pages.numel() * self.pages.element_size()

    def resident_bytes(self) -> int:
        """Bytes that really take memory now. On Linux asked from the kernel (mincore): 1 ms for a mapping of 10 GiB."""
        if self._map is None:
            return 0 if self._region is None else self._region.mapped_bytes
        libc = ctypes.CDLL(None, use_errno=True)
        num = -(-len(self._map) // mmap.PAGESIZE)
        flags = np.zeros(num, np.uint8)
        address, length = ctypes.c_void_p(self.pages.data_ptr()), ctypes.c_size_t(len(self._map))
        if libc.mincore(address, length, flags.ctypes.data_as(ctypes.c_void_p)) != 0:
            return len(self._map)  # not known here: the most it can be
        return int((flags & 1).sum()) * mmap.PAGESIZE

    def close(self) -> None:
        """Gives all bytes back. Views of ``pages`` that are still alive read zeros afterwards; with the last of them
        the address space goes too (``mmap.close`` would not wait for them: torch holds the object, not its buffer).
        """
        self.pages = torch.empty(0, self.layout.page_elems, dtype=self.layout.dtype, device=self.device)
        if self._region is not None:
            self._region.close()
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._map = None

    def _ranges(self, blocks: Iterable[int]) -> list[tuple[int, int]]:
        size = self.fmt.block_bytes
        return [(block * size, (block + 1) * size) for block in blocks]


def _reserve(num_bytes: int) -> mmap.mmap:
    """Address space without memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return mmap.mmap(-1, num_bytes, flags=flags)
    except (OSError, OverflowError, ValueError) as error:
        raise BudgetError(
            f"no address space for {num_bytes} bytes of KV pages ({error}); lower the memory budget or raise ulimit -v"
        ) from error


def _advise(mapping: mmap.mmap, huge: bool) -> bool:
    """Asks for huge pages or declines them; whether the kernel may give some."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    except OSError:  # a kernel without huge pages has nothing to ask for or to decline
        return False
    return huge


def _spans(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbours (first, last) in ascending ids."""
    breaks = [i for i, (a, b) in enumerate(pairwise(blocks), 1) if b > a + 1]
    for start, stop in pairwise([0, *breaks, len(blocks)] if blocks else []):
        yield blocks[start], blocks[stop - 1]
