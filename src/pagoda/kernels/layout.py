"""What lies inside a page. Only ops look in here; everybody else moves pages by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class SlotCodec(Protocol):
    """How the numbers of one slot become bytes. The codecs themselves are files of ``kv/codecs/``."""

    @property
    def name(self) -> str: ...

    @property
    def max_error(self) -> float:
        """Most that a decoded number is off, as a share of the slot's largest."""
        ...

    def code_bytes(self, dim: int) -> int:
        """Bytes of the codes of ``dim`` numbers."""
        ...

    def scale_bytes(self, dim: int) -> int:
        """Bytes of what else it takes to decode them."""
        ...

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 ``[..., dim]`` -> codes uint8 ``[..., code_bytes]``, scales uint8 ``[..., scale_bytes]``."""
        ...

    def decode(self, codes: Tensor, scales: Tensor, dim: int) -> Tensor:
        """The way back: float32 ``[..., dim]``."""
        ...


@dataclass(frozen=True, slots=True)
class PageLayout:
    """One page = ``page_size`` slots of one kv-head of one layer, in planes of equal rows, one row a slot::

        numbers   [ K slot 0 | K slot 1 | … | V slot 0 | V slot 1 | … ]
        codec     [ K codes, slot 0 | … | V codes, slot 0 | … | K scales, slot 0 | … | V scales, slot 0 | … ]

    ``pages`` is the storage ``[num_pages, page_elems]`` of ``dtype``, contiguous; with a codec ``dtype`` is uint8 and
    an element is a byte. ``v_dim == 0`` is a latent page (MLA): V is the first columns of K, nothing is stored twice.
    """

    page_size: int
    k_dim: int
    v_dim: int
    dtype: torch.dtype
    codec: SlotCodec | None = None

    @property
    def codec_name(self) -> str:
        """Name of the codec, or '' for pages of numbers."""
        return "" if self.codec is None else self.codec.name

    @property
    def planes(self) -> list[tuple[int, int]]:
        """(first element, elements of a slot) of each plane that the page has."""
        dims = [self.k_dim, self.v_dim] if self.v_dim else [self.k_dim]
        widths = list(dims)
        if self.codec is not None:
            widths = [self.codec.code_bytes(dim) for dim in dims] + [self.codec.scale_bytes(dim) for dim in dims]
        starts, at = [], 0
        for width in widths:
            starts.append(at)
            at += self.page_size * width
        return list(zip(starts, widths, strict=True))

    @property
    def page_elems(self) -> int:
        """Elements of a page."""
        return sum(self.page_size * width for _, width in self.planes)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self.page_elems * self.dtype.itemsize

    def plane_views(self, pages: Tensor) -> list[Tensor]:
        """Each plane of every page, a view ``[num_pages, page_size, elements of a slot]``."""
        views = [pages[:, at : at + self.page_size * width] for at, width in self.planes]
        return [x.view(len(pages), self.page_size, x.shape[1] // self.page_size) for x in views]

    def k(self, pages: Tensor) -> Tensor:
        """K of every page, a view ``[num_pages, page_size, k_dim]``. Pages of numbers only."""
        assert self.codec is None, "the numbers of a codec's pages are decoded, not viewed: see ops._paged.gather"
        return self.plane_views(pages)[0]

    def v(self, pages: Tensor) -> Tensor:
        """V of every page, a view ``[num_pages, page_size, v_dim]`` (no columns for a latent page). Numbers only."""
        assert self.codec is None, "the numbers of a codec's pages are decoded, not viewed: see ops._paged.gather"
        return self.plane_views(pages)[1] if self.v_dim else pages[:, :0].view(len(pages), self.page_size, 0)

    def new_pages(self, num_pages: int, device: torch.device | str = "cpu") -> Tensor:
        """Zeroed storage for tests and small tools; the engine's storage is ``kv.storage``."""
        return torch.zeros(num_pages, self.page_elems, dtype=self.dtype, device=device)
