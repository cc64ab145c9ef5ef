"""How the encoded pages of one store are read, layer by layer: found once, since a step reads all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import KVFormat
from ..kernels._optional import extension
from ..kernels.page_code import PageCode
from .policies._windowed import Learned, WindowedCodec


class PageCodes:
    """Of codecs that read alike, so that any of them may be asked. ``learn`` says what they were calibrated to,
    ``[L, H, …]``; ``hold`` leases bytes of what is made of it.
    """

    def __init__(self, fmt: KVFormat, learn: Callable[[], Learned], hold: Callable[[int], bool]) -> None:
        self._fmt, self._learn, self._hold = fmt, learn, hold
        self.forget()

    def forget(self) -> None:
        """What was found is wanted no more, nor its lease; it is found again when it is asked for."""
        self._codes: list[PageCode] = []
        self._sides: Any = None
        self._asked = False

    @property
    def in_program(self) -> bool:
        """Whether a step's program reads them: then no codec is asked for anything any more."""
        return self._sides is not None

    def learned_of(self, layer: int) -> dict[str, Tensor]:
        """``[H, …]`` each."""
        return {name: values[layer] for name, values in self._learn().items()}

    def of(self, codec: WindowedCodec, layer: int) -> PageCode:
        """Of one layer. What the codec raises comes through."""
        if not self._codes:
            fmt, layers = self._fmt, range(self._fmt.num_layers)
            codes = [codec.code(fmt.page_size, fmt.k_dim, fmt.v_dim, self.learned_of(at)) for at in layers]
            for side in (side for code in codes for side in code.sides or ()):
                if side.table is not None and len(side.table) != fmt.num_kv_heads:  # kernels would read beyond it
                    raise ConfigError(
                        f"{codec.method} was calibrated for {len(side.table)} kv-heads and this model has "
                        f"{fmt.num_kv_heads}; run: pagoda calibrate {codec.method} MODEL --force"
                    )
            self._codes = codes
        return self._codes[layer]

    def sides(self, codec: WindowedCodec) -> Any:
        """Those of all layers as a step's program reads them, or None where layers have to be asked one by one: kernels
        do not decode them, the codec has something to say in each, or there was no room for the tables at first.
        """
        if not self._asked and extension() is not None and not codec.shares:
            self._sides, self._asked = self._find_sides(codec), True
        return self._sides

    def _find_sides(self, codec: WindowedCodec) -> Any:
        from ..kernels.cpu_page_numbers import LayerSides, can_read

        codes = [self.of(codec, layer) for layer in range(self._fmt.num_layers)]
        if not all(map(can_read, codes)):
            return None
        found = LayerSides(codes, self._fmt.page_bytes)
        num_bytes = found.num_bytes(self._learn().values())
        return found if not num_bytes or self._hold(num_bytes) else None
