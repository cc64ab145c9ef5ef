"""compressed-tensors checkpoints (llm-compressor): packed 4-bit, int8 and fp8 weights of linear layers.

pack-quantized    weight_packed int32 [out, in / 8], weight_scale [out, groups], weight_shape [2];
                  weight_zero_point int32 [out / 8, groups] where asymmetric; integers are stored plus 8
int-quantized     weight int8 [out, in], weight_scale [out, 1]
float-quantized   weight e4m3 [out, in], weight_scale [out, 1] or [1]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...core.config import Section
from ...core.errors import WeightsError, choices
from ..formats._bits import pack_bits
from ..formats.base import BLOCK_ELEMS, WeightFormat
from ..formats.fp8 import FP8
from ..formats.int4 import Int4
from ..formats.int8 import Int8
from ..formats.w4a8 import W4A8
from ..formats.w8a8 import W8A8
from ._words import unpack_words
from .base import Logical, ModuleScheme, repeat_groups, whole_groups

if TYPE_CHECKING:
    from torch import Tensor

    from ..packed import CodedMatrix

FORMATS = ("pack-quantized", "int-quantized", "float-quantized")


class CompressedTensors(ModuleScheme):
    def setup(self) -> None:
        section = Section(self.config, "quantization_config")
        self.layout = section.read("format", str)
        if self.layout not in FORMATS:
            raise WeightsError(f"quantization_config: {choices('compressed-tensors format', self.layout, FORMATS)}")
        groups = section.read("config_groups", dict[str, Any])
        if len(groups) != 1:
            raise WeightsError(
                f"quantization_config: {len(groups)} config_groups; one scheme for all layers is accepted"
            )
        where = f"quantization_config: config_groups: {next(iter(groups))}"
        group = Section(next(iter(groups.values())), where)
        weights = group.section("weights")
        self.bits, self.symmetric = weights.read("num_bits", int), weights.read("symmetric", bool, True)
        strategy = weights.read("strategy", str, "tensor")
        if strategy not in ("tensor", "channel", "group"):
            raise WeightsError(f"{where}: {choices('strategy', strategy, ('tensor', 'channel', 'group'))}")
        self.group = (weights.read_optional("group_size", int) or 0) if strategy == "group" else 0
        inputs = group.section("input_activations")
        self.dynamic = (inputs.read_optional("num_bits", int) or 0) == 8 and inputs.read("type", str, "int") == "int"

    def marks(self) -> str:
        return ".weight_scale"

    def leftovers(self, name: str) -> Iterable[str]:
        return [n for n in self.entries if n.startswith(f"{name}.weight_") or n.startswith(f"{name}.input_")]

    def module(self, name: str) -> Logical:
        return self._packed(name) if self.layout == "pack-quantized" else self._plain(name)

    def _plain(self, name: str) -> Logical:
        from ..packed import CodedMatrix

        stored = "int8" if self.layout == "int-quantized" else "fp8"
        entry = self.entry(f"{name}.weight")
        if entry.dtype != {"int8": "I8", "fp8": "F8_E4M3"}[stored]:
            raise WeightsError(f"{entry.file}: tensor {name + '.weight'!r} is {entry.dtype}, {self.layout} is {stored}")
        rows, cols = entry.shape
        found: WeightFormat = FP8(embed="none")
        if stored == "int8":
            if self.group or not self.symmetric:
                raise WeightsError(
                    "quantization_config: int-quantized weights are accepted symmetric, a scale per output"
                )
            found = W8A8(embed="none") if self.dynamic else Int8(embed="none")

        def build(tensors: Mapping[str, Tensor]) -> CodedMatrix:
            import torch

            codes = tensors[f"{name}.weight"]
            scale = tensors[f"{name}.weight_scale"].float().reshape(-1).expand(len(codes)).contiguous()
            return CodedMatrix(found, {"codes": codes, "scale": scale}, cols, torch.float32)

        return Logical((f"{name}.weight", f"{name}.weight_scale"), (rows, cols), build, found, by_rows=True)

    def _packed(self, name: str) -> Logical:
        if self.bits != 4:
            raise WeightsError(f"quantization_config: {choices('pack-quantized num_bits', self.bits, (4,))}")
        rows, words = self.entry(f"{name}.weight_packed").shape
        self.entry(f"{name}.weight_shape")
        cols = int(self.read(f"{name}.weight_shape")[1])
        if -(-cols // 8) != words:
            raise WeightsError(f"tensor {name + '.weight_shape'!r} says {cols} inputs, weight_packed has {words * 8}")
        group = self.group or cols
        groups = -(-cols // group)
        self.expect(f"{name}.weight_scale", (rows, groups))
        zeros = () if self.symmetric else (f"{name}.weight_zero_point",)
        ours = whole_groups(group, cols)
        if ours is None:
            raise WeightsError(f"quantization_config: groups of {group} inputs; accepted: multiples of 32")
        kind = W4A8 if self.dynamic else Int4
        found = kind(group=ours, symmetric=self.symmetric, scale="float32", embed="none")
        parts = (f"{name}.weight_packed", f"{name}.weight_scale", *zeros)
        # Zero points are packed along the rows, so only codes without them can be cut.
        return Logical(
            parts, (rows, cols), lambda t: self._build(t, name, cols, group, found), found, by_rows=self.symmetric
        )

    def _build(
        self, tensors: Mapping[str, Tensor], name: str, cols: int, group: int, format: Int4 | W4A8
    ) -> CodedMatrix:
        import torch

        from ..packed import CodedMatrix

        words, step = tensors[f"{name}.weight_packed"], max(1, BLOCK_ELEMS // cols)
        blocks = (unpack_words(words[i : i + step], 4)[:, :cols] for i in range(0, len(words), step))
        codes = {
            "codes": torch.cat([pack_bits(block, 4) for block in blocks]),
            "scale": repeat_groups(tensors[f"{name}.weight_scale"].float(), group, format.group, cols),
        }
        if not format.symmetric:
            zeros = unpack_words(tensors[f"{name}.weight_zero_point"].T, 4).T[: len(words)]
            codes["zero"] = repeat_groups(zeros.contiguous(), group, format.group, cols)
        return CodedMatrix(format, codes, cols, torch.float32)


SCHEME = CompressedTensors
