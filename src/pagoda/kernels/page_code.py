"""How a codec of whole pages tells the kernels where in a page its numbers are, and what lies raw beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (
    "channel_grid", "token_grid", "zip_keys", "zip_values", "block_floats", "coupled", "atoms", "columns", "basis",
    "spread",
)  # fmt: skip
"""enum CodeKind of ``csrc/page_numbers.hpp``, which says what each is and which offsets it wants."""


@dataclass(frozen=True, slots=True)
class Side:
    """The keys or the values of a page: a kind, its byte offsets and other numbers, its table float32 ``[H, …]``."""

    kind: str
    at: tuple[int, ...]
    table: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PageCode:
    """One layer's pages of ``num_bytes``. ``decode``: the definition, uint8 ``[H, n, num_bytes]`` -> float32 k
    ``[H, n, page_size, k_dim]`` and v; ``sides``: the same for the kernels, None where they know no kind for it;
    ``encode``: the way back, float32, where a page's codes depend on nothing but its numbers and a table.
    """

    page_size: int
    k_dim: int
    v_dim: int
    num_bytes: int
    decode: Callable[[Tensor], tuple[Tensor, Tensor]]
    sides: tuple[Side, Side] | None = None
    encode: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """What a kernel must know to decode them."""
        return frozenset(side.kind for side in self.sides) if self.sides else frozenset({"decoded in torch"})


@dataclass(frozen=True, slots=True)
class RawSlots:
    """One sequence's newest slots in a layer, as numbers: k ``[H, room, k_dim]``, v ``[H, room, v_dim]``, contiguous.
    Those before slot ``start``, a multiple of the page size, are in encoded pages, also the first ``skip`` here.
    """

    k: Tensor
    v: Tensor
    start: int
    skip: int = 0
