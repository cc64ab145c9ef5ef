"""GPTQ checkpoints (arXiv:2210.17323), as AutoGPTQ and GPTQModel write them.

qweight  int32 [in * bits / 32, out]    inputs run down, 32 / bits of them in a word, the first lowest
qzeros   int32 [groups, out * bits / 32]  zero points, less 1 in the first version of the layout
scales   float [groups, out]            w = (q - zero) * scale
g_idx    int32 [in]                     the group of each input (activation order mixes them)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ...core.config import Section
from ...core.errors import WeightsError, choices
from ..formats._bits import pack_bits
from ..formats.base import BLOCK_ELEMS, WeightFormat
from ._words import unpack_words
from .base import Logical, ModuleScheme, repeat_groups, whole_groups

if TYPE_CHECKING:
    from torch import Tensor

    from ..packed import CodedMatrix

BITS = (2, 4, 8)


class GPTQ(ModuleScheme):
    def setup(self) -> None:
        section = Section(self.config, "quantization_config")
        self.bits, self.group = section.read("bits", int), section.read("group_size", int, -1)
        self.symmetric = section.read("sym", bool, True)
        layout = section.read_optional("checkpoint_format", str) or "gptq"
        if self.bits not in BITS:
            raise WeightsError(f"quantization_config: {choices('gptq bits', self.bits, BITS)}")
        if layout not in ("gptq", "gptq_v2"):
            raise WeightsError(f"quantization_config: {choices('checkpoint_format', layout, ('gptq', 'gptq_v2'))}")
        self.zero_offset = 1 if layout == "gptq" else 0

    def marks(self) -> str:
        return ".qweight"

    def leftovers(self, name: str) -> Iterable[str]:
        return (f"{name}.g_idx",)

    def module(self, name: str) -> Logical:
        words, rows = self.entry(f"{name}.qweight").shape
        per_word = 32 // self.bits
        cols = words * per_word
        group = cols if self.group <= 0 else self.group
        groups = -(-cols // group)
        self.expect(f"{name}.scales", (groups, rows))
        self.expect(f"{name}.qzeros", (groups, -(-rows // per_word)))
        parts = tuple(f"{name}.{part}" for part in ("qweight", "scales", "qzeros"))
        in_order = self._is_in_order(f"{name}.g_idx", cols, group)
        if not in_order:
            parts += (f"{name}.g_idx",)
        found = self._format(name, group, cols, rows) if in_order else None
        return Logical(parts, (rows, cols), lambda t: self._build(t, name, cols, group, found), found)

    def _is_in_order(self, name: str, cols: int, group: int) -> bool:
        import torch

        if name not in self.entries:
            return True
        self.expect(name, (cols,))
        return torch.equal(self.read(name), torch.arange(cols, dtype=torch.int32) // group)

    def _format(self, name: str, group: int, cols: int, rows: int) -> WeightFormat | None:
        """int4 holds 4-bit codes exactly, where groups are multiples of ours and no zero point is 16."""
        from ..formats.int4 import Int4

        ours = whole_groups(group, cols)
        if self.bits != 4 or ours is None:
            return None
        zeros = self._zeros(self.read(f"{name}.qzeros"), rows)
        if bool((zeros == 8).all()):
            return Int4(group=ours, symmetric=True, scale="float32", embed="none")
        return None if int(zeros.max()) > 15 else Int4(group=ours, scale="float32", embed="none")

    def _zeros(self, words: Tensor, rows: int) -> Tensor:
        """uint8 ``[groups, rows]``."""
        return unpack_words(words, self.bits)[:, :rows] + self.zero_offset

    def _build(
        self, tensors: Mapping[str, Tensor], name: str, cols: int, group: int, format: WeightFormat | None
    ) -> Tensor | CodedMatrix:
        import torch

        from ..formats.int4 import Int4
        from ..packed import CodedMatrix

        words, scales = tensors[f"{name}.qweight"], tensors[f"{name}.scales"].float().T.contiguous()
        rows = words.shape[1]
        zeros = self._zeros(tensors[f"{name}.qzeros"], rows).T.contiguous()
        step = max(1, BLOCK_ELEMS // cols)
        blocks = (unpack_words(words[:, i : i + step].T, self.bits) for i in range(0, rows, step))
        if isinstance(format, Int4):
            codes = {"codes": torch.cat([pack_bits(block, 4) for block in blocks])}
            codes["scale"] = repeat_groups(scales, group, format.group, cols)
            if not format.symmetric:
                codes["zero"] = repeat_groups(zeros, group, format.group, cols)
            return CodedMatrix(format, codes, cols, torch.float32)
        order = tensors.get(f"{name}.g_idx")
        index = torch.arange(cols) // group if order is None else order.long()
        out = torch.empty(rows, cols)
        for start, block in zip(range(0, rows, step), blocks, strict=True):
            part = slice(start, start + step)
            out[part] = (block.float() - zeros[part][:, index]) * scales[part][:, index]
        return out


SCHEME = GPTQ
