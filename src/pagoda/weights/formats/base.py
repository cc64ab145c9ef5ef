"""What a weight format is: how a matrix ``[rows, cols]`` becomes codes, how many bytes they take, and the way back.

A format is a frozen dataclass of its parameters; the text ``int4(group=64)`` builds one. Importing a format loads no
torch: the planner asks for bytes before anything is loaded.

*Codes* are a format's tensors by name, in the canonical form that is stored on disk and taken from other people's
checkpoints. All but the ``shared`` ones have a row per row of the matrix, so rows can be cut out, gathered (embeddings)
and joined (q, k and v of one projection) without unpacking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError, WeightsError, choices

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Codes = dict[str, Tensor]

Part = tuple[tuple[int, ...], str]
"""Shape and dtype of one tensor of the codes."""

PART_BYTES = {
    "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float16": 2, "bfloat16": 2, "float32": 4,
}  # fmt: skip
GROUPS = (32, 64, 128)
NOT_FINITE = "a value is infinite or not a number, which no weight format can hold"
TILE_ELEMS = 1 << 18  # unpacked at a time where no kernel multiplies packed codes
BLOCK_ELEMS = 1 << 18  # quantized at a time: 1 MiB of float32, so that temporaries stay in the processor's cache
FAST_ELEMS = 1 << 20  # quantized at a time by a kernel: shared by the cores, and its scratch is below that of torch's
SCRATCH_BYTES = 24  # per weight while it is quantized: float32 and copies of it (the peak test of loading holds it)


@dataclass(frozen=True)
class WeightFormat(ABC):
    """Base of all formats. ``embed`` names the format of embedding and head beside this one, or ``none``."""

    embed: str = "int8"

    name: ClassVar[str] = ""
    row_wise: ClassVar[bool] = True
    """Rows are quantized one by one, so a matrix may come in parts; otherwise it is quantized as a whole."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Names of the codes that belong to all rows together."""
    kernel: ClassVar[str] = ""
    """The format's name in ``kernels.packed``, whose order its matrices have in memory; empty: its own codes."""
    opened: ClassVar[str] = ""
    """Its name in ``kernels.coded``, whose kernel opens the format's codes while it multiplies; empty: none does."""
    dynamic: ClassVar[bool] = False
    """Whether activations are rounded to int8, token by token, before they are multiplied."""
    relative_error: ClassVar[float] = 0.0
    """Bound on |w - unpacked| / |w| (Frobenius) for normally distributed weights, with the default parameters."""

    @abstractmethod
    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        """The tensors of a matrix's codes: name -> (shape, dtype)."""

    @abstractmethod
    def quantize(self, weight: Tensor) -> Codes:
        """Codes of a float32 matrix ``[rows, cols]`` (or of some of its rows, where ``row_wise``), to the nearest."""

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        """As ``quantize``, of rows in any plain dtype, by a kernel; None where there is none for them.

        Raises WeightsError for values that are not finite.
        """
        return None

    @abstractmethod
    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        """float32 ``[rows, cols]`` of codes with any number of rows."""

    def dequantize_to(self, codes: Codes, cols: int, dtype: torch.dtype) -> Tensor:
        """``dequantize`` rounded to another type."""
        return self.dequantize(codes, cols).to(dtype)

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What ``kernels.packed.lay_out`` takes of these codes: integers (or plain weights), scales, zeros."""
        raise NotImplementedError(f"{self.name} has no kernel")

    @property
    def kernel_group(self) -> int:
        """Inputs that share a scale, as the kernel counts them: 0 where a row has one."""
        return 0

    @property
    def read_as(self) -> WeightFormat:
        """The format of a matrix that stays on disk, where rows are multiplied as they come."""
        return self

    @property
    def beside(self) -> tuple[str, ...]:
        """The codes that a kernel takes beside the rows of ``codes``: ``scale``, ``zero``, or none."""
        return tuple(name for name in self.parts(1, 1) if name not in ("codes", "values"))

    def num_bytes(self, rows: int, cols: int) -> int:
        """Exact bytes of a packed matrix in memory."""
        return self.stored_bytes(rows, cols)

    def stored_bytes(self, rows: int, cols: int) -> int:
        """Exact bytes of a matrix's codes, as they are stored."""
        return sum(prod(shape) * PART_BYTES[dtype] for shape, dtype in self.parts(rows, cols).values())

    def scratch_bytes(self, rows: int, cols: int) -> int:
        """Bytes beside codes and tensor while a matrix is packed (an upper estimate)."""
        return (min(rows * cols, BLOCK_ELEMS + cols) if self.row_wise else rows * cols) * SCRATCH_BYTES

    def unpacking_bytes(self, cols: int) -> int:
        """Bytes that a product takes for the rows that it unpacks (an upper estimate)."""
        return 0 if self.kernel else max(TILE_ELEMS, cols) * SCRATCH_BYTES

    def same_codes(self, other: WeightFormat) -> bool:
        """Whether codes of ``other`` are codes of this format: the same parameters but for ``embed``."""
        return type(self) is type(other) and replace(other, embed=self.embed) == self


def empty_codes(format: WeightFormat, rows: int, cols: int) -> Codes:
    """The format's tensors, not filled."""
    import torch

    return {n: torch.empty(shape, dtype=getattr(torch, t)) for n, (shape, t) in format.parts(rows, cols).items()}


def check_finite(finite: bool) -> None:
    """Raises WeightsError unless all values were."""
    if not finite:
        raise WeightsError(NOT_FINITE)


def check_group(name: str, group: int, allowed: tuple[int, ...] = GROUPS) -> None:
    """Raises ConfigError unless ``group`` is one of the sizes that exist."""
    if group not in allowed:
        raise ConfigError(choices(f"{name} group", group, allowed))


def num_groups(cols: int, group: int) -> int:
    """Groups of a row; the last may be cut short."""
    return -(-cols // group)
