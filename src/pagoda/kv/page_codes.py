"""How the encoded pages of one store are read, layer by layer: made once, since a step reads all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..core.types import KVFormat
from ..kernels._optional import extension
from ..kernels.page_code import PageCode
from .policies._windowed import Learned, WindowedCodec


class PageCodes:
    """Of codecs that read alike. ``learned``: what they were calibrated to, ``[L, H, …]``; ``hold`` leases bytes of
    what is made of it.
    """

    def __init__(self, fmt: KVFormat, learned: Learned, hold: Callable[[int], bool]) -> None:
        self._fmt, self._learned, self._hold = fmt, learned, hold
        self._codes: dict[WindowedCodec, list[PageCode]] = {}
        self._sides: dict[WindowedCodec, Any] = {}

    def learned_of(self, layer: int) -> dict[str, Tensor]:
        """``[H, …]`` each."""
        return {name: values[layer] for name, values in self._learned.items()}

    def of(self, codec: WindowedCodec, layer: int) -> PageCode:
        """Of one layer. What the codec raises comes through."""
        found = self._codes.get(codec)
        if found is None:
            fmt = self._fmt
            found = self._codes[codec] = [
                codec.code(fmt.page_size, fmt.k_dim, fmt.v_dim, self.learned_of(layer))
                for layer in range(fmt.num_layers)
            ]
        return found[layer]

    def sides(self, codec: WindowedCodec) -> Any:
        """Those of all layers as a step's program reads them, or None where layers have to be asked one by one."""
        if codec not in self._sides:
            self._sides[codec] = self._find_sides(codec)
        return self._sides[codec]

    def _find_sides(self, codec: WindowedCodec) -> Any:
        if extension() is None or codec.shares:
            return None
        from ..kernels.cpu_page_numbers import LayerSides, can_read

        codes = [self.of(codec, layer) for layer in range(self._fmt.num_layers)]
        if not all(map(can_read, codes)):
            return None
        found = LayerSides(codes, self._fmt.page_bytes)
        num_bytes = found.num_bytes(self._learned.values())
        return found if not num_bytes or self._hold(num_bytes) else None
