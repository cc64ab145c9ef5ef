"""What lies inside a page. Only ops look in here; everybody else moves pages by id."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PageLayout:
    """One page = ``page_size`` slots of one kv-head of one layer::

        page  [ K slot 0 | K slot 1 | … | K slot page_size-1 | V slot 0 | … | V slot page_size-1 ]   page_elems
                k_dim                                          v_dim

    ``pages`` is the storage ``[num_pages, page_elems]`` of ``dtype``, contiguous. ``v_dim == 0`` is a latent page
    (MLA): V is the first columns of K, and nothing is stored twice.
    """

    page_size: int
    k_dim: int
    v_dim: int
    dtype: torch.dtype

    @property
    def k_elems(self) -> int:
        """Elements of a page's K block, hence where its V block starts."""
        return self.page_size * self.k_dim

    @property
    def page_elems(self) -> int:
        """Elements of a page."""
        return self.page_size * (self.k_dim + self.v_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self.page_elems * self.dtype.itemsize

    def k(self, pages: Tensor) -> Tensor:
        """K of every page, a view ``[num_pages, page_size, k_dim]``."""
        return pages[:, : self.k_elems].view(pages.shape[0], self.page_size, self.k_dim)

    def v(self, pages: Tensor) -> Tensor:
        """V of every page, a view ``[num_pages, page_size, v_dim]`` (no columns for a latent page)."""
        return pages[:, self.k_elems :].view(pages.shape[0], self.page_size, self.v_dim)

    def new_pages(self, num_pages: int, device: torch.device | str = "cpu") -> Tensor:
        """Zeroed storage for tests and small tools; the engine's storage is ``kv.storage``."""
        return torch.zeros(num_pages, self.page_elems, dtype=self.dtype, device=device)
