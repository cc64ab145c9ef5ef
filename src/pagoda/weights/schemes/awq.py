"""AWQ checkpoints (arXiv:2306.00978), as AutoAWQ writes them for its ``gemm`` kernels.

qweight  int32 [in, out / 8]       eight outputs in a word, in the order 0 2 4 6 1 3 5 7
qzeros   int32 [groups, out / 8]   zero points, the same way
scales   float [groups, out]       w = (q - zero) * scale
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...core.config import Section
from ...core.errors import WeightsError, choices
from ..formats._bits import pack_bits
from ..formats.base import BLOCK_ELEMS
from ._words import unpack_words
from .base import Logical, ModuleScheme, repeat_groups, whole_groups

if TYPE_CHECKING:
    from torch import Tensor

    from ..packed import CodedMatrix

# Field i of a word holds output (0, 2, 4, 6, 1, 3, 5, 7)[i]; so output j is in field FIELD[j].
FIELD = (0, 4, 1, 5, 2, 6, 3, 7)


class AWQ(ModuleScheme):
    def setup(self) -> None:
        section = Section(self.config, "quantization_config")
        bits, version = section.read("bits", int, 4), section.read("version", str, "gemm").lower()
        self.group = section.read("group_size", int, 128)
        if bits != 4:
            raise WeightsError(f"quantization_config: {choices('awq bits', bits, (4,))}")
        if version != "gemm":
            raise WeightsError(f"quantization_config: {choices('awq version', version, ('gemm',))}")

    def marks(self) -> str:
        return ".qweight"

    def module(self, name: str) -> Logical:
        from ..formats.int4 import Int4

        cols, words = self.entry(f"{name}.qweight").shape
        group = cols if self.group <= 0 else self.group
        groups = -(-cols // group)
        self.expect(f"{name}.scales", (groups, words * 8))
        self.expect(f"{name}.qzeros", (groups, words))
        ours = whole_groups(group, cols)
        if ours is None:
            raise WeightsError(f"quantization_config: awq group_size {group}; accepted: multiples of 32")
        found = Int4(group=ours, scale="float32", embed="none")
        parts = tuple(f"{name}.{part}" for part in ("qweight", "scales", "qzeros"))
        return Logical(parts, (words * 8, cols), lambda t: self._build(t, name, cols, group, found), found)

    def _build(self, tensors: Mapping[str, Tensor], name: str, cols: int, group: int, format: object) -> CodedMatrix:
        import torch

        from ..formats.int4 import Int4
        from ..packed import CodedMatrix

        assert isinstance(format, Int4)
        words = tensors[f"{name}.qweight"]
        step = max(1, BLOCK_ELEMS // cols // 8)
        blocks = (unpack_words(words[:, i : i + step], 4, FIELD).T for i in range(0, words.shape[1], step))
        zeros = unpack_words(tensors[f"{name}.qzeros"], 4, FIELD).T.contiguous()
        codes = {
            "codes": torch.cat([pack_bits(block, 4) for block in blocks]),
            "scale": repeat_groups(tensors[f"{name}.scales"].float().T.contiguous(), group, format.group, cols),
            "zero": repeat_groups(zeros, group, format.group, cols),
        }
        return CodedMatrix(format, codes, cols, torch.float32)


SCHEME = AWQ
