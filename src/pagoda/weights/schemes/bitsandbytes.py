"""bitsandbytes checkpoints: nf4 and fp4 (QLoRA, arXiv:2305.14314) and int8 (LLM.int8, arXiv:2208.07339).

4-bit: ``weight`` uint8 [out * in / 2, 1], two codes a byte, the first in the high half, blocks of 64 along the rows;
``weight.absmax`` a scale per block, or, doubly quantized, uint8 indices into ``nested_quant_map`` times
``nested_absmax`` (per 256) plus an offset; ``weight.quant_state.bitsandbytes__nf4`` a JSON text with shape and offset.
8-bit: ``weight`` int8 [out, in], ``SCB`` float [out], w = q * SCB / 127.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.config import Section
from ...core.errors import WeightsError, choices
from ...kernels.packed_bytes import NF4_LEVELS
from ..formats.base import WeightFormat
from ..formats.int8 import Int8
from ..formats.nf4 import NF4
from .base import Logical, ModuleScheme

if TYPE_CHECKING:
    from torch import Tensor

    from ..packed import CodedMatrix


class BitsAndBytes(ModuleScheme):
    def setup(self) -> None:
        section = Section(self.config, "quantization_config")
        self.is_4bit, self.is_8bit = (
            section.read("load_in_4bit", bool, False),
            section.read("load_in_8bit", bool, False),
        )
        if self.is_4bit == self.is_8bit:
            raise WeightsError("quantization_config: bitsandbytes needs one of load_in_4bit and load_in_8bit")
        self.kind = section.read("bnb_4bit_quant_type", str, "fp4")
        if self.is_4bit and self.kind not in ("nf4", "fp4"):
            raise WeightsError(f"quantization_config: {choices('bnb_4bit_quant_type', self.kind, ('nf4', 'fp4'))}")

    def marks(self) -> str:
        return ".weight"

    def is_packed(self, stored: str) -> bool:
        name = stored.removesuffix(".weight")
        return f"{name}.SCB" in self.entries if self.is_8bit else f"{stored}.absmax" in self.entries

    def leftovers(self, name: str) -> Iterable[str]:
        return [n for n in self.entries if n.startswith((f"{name}.weight.", f"{name}.weight_format"))]

    def module(self, name: str) -> Logical:
        return self._module8(name) if self.is_8bit else self._module4(name)

    def _module8(self, name: str) -> Logical:
        from ..packed import CodedMatrix

        rows, cols = self.entry(f"{name}.weight").shape
        self.expect(f"{name}.SCB", (rows,))
        found = Int8(embed="none")

        def build(tensors: Mapping[str, Tensor]) -> CodedMatrix:
            import torch

            scale = tensors[f"{name}.SCB"].float() / 127
            return CodedMatrix(found, {"codes": tensors[f"{name}.weight"], "scale": scale}, cols, torch.float32)

        return Logical((f"{name}.weight", f"{name}.SCB"), (rows, cols), build, found)

    def _module4(self, name: str) -> Logical:
        state_name = f"{name}.weight.quant_state.bitsandbytes__{self.kind}"
        self.entry(state_name)
        state = _json(self.read(state_name), state_name)
        rows, cols = state["shape"]
        nested = f"{name}.weight.nested_absmax" in self.entries
        names = ["absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if nested else ())]
        parts = (f"{name}.weight", *(f"{name}.weight.{part}" for part in names))
        block = int(state.get("blocksize", 64))
        self.expect(f"{name}.weight", (-(-rows * cols // 2), 1))
        self.expect(f"{name}.weight.absmax", (-(-rows * cols // block),))
        fits = self.kind == "nf4" and block in (32, 64, 128) and cols % block == 0 and cols % 2 == 0
        found = NF4(group=block, embed="none") if fits else None
        return Logical(parts, (rows, cols), lambda t: _build4(t, f"{name}.weight", state, found), found)


def _build4(
    tensors: Mapping[str, Tensor], name: str, state: Mapping[str, Any], format: WeightFormat | None
) -> Tensor | CodedMatrix:
    import torch

    from ..packed import CodedMatrix

    rows, cols = state["shape"]
    absmax, levels = tensors[f"{name}.absmax"], tensors[f"{name}.quant_map"].float()
    if f"{name}.nested_absmax" in tensors:
        outer = tensors[f"{name}.nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))
        inner = tensors[f"{name}.nested_quant_map"].float()[absmax.long()]
        absmax = inner * outer[: len(inner)] + float(state["nested_offset"])
    packed, block = tensors[name].flatten(), int(state.get("blocksize", 64))
    if format is not None and torch.allclose(levels, torch.tensor(NF4_LEVELS), atol=1e-6):
        swapped = (packed << 4) | (packed >> 4)  # ours has the first code in the low half
        codes = {"codes": swapped.view(rows, cols // 2), "scale": absmax.float().view(rows, cols // block)}
        return CodedMatrix(format, codes, cols, torch.float32)
    both = torch.stack((packed >> 4, packed & 15), -1).flatten()[: rows * cols]
    scales = absmax.float().repeat_interleave(block)[: rows * cols]
    return (levels[both.int()] * scales).view(rows, cols)


def _json(tensor: Tensor, name: str) -> dict[str, Any]:
    try:
        found = json.loads(bytes(tensor.tolist()))
        shape = found["shape"]
        if len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape {shape!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"tensor {name!r} is not a bitsandbytes state ({error})") from error
    return found  # type: ignore[no-any-return]


SCHEME = BitsAndBytes
