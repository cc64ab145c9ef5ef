"""The two things that hold weights everywhere: a linear map and a normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pagoda.kernels import ops
from pagoda.weights.expert_cache import CachedExperts
from pagoda.weights.packed import ExpertStack, PackedMatrix

from ..spec import NormSpec
from .sparse_mlp import InRows, SparseNeurons

Weight = Tensor | PackedMatrix | ExpertStack | CachedExperts | SparseNeurons | InRows
Weights = Mapping[str, Any]
"""Parameters by our name: a Tensor, or a matrix in a weight format where quantization asks for one."""


def linear(x: Tensor, weight: Tensor | PackedMatrix, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., in]``, weight ``[out, in]`` -> ``[..., out]``."""
    return ops.linear(x, weight, bias) if isinstance(weight, Tensor) else weight.linear(x, bias)


def logits(x: Tensor, weight: Tensor | PackedMatrix, bias: Tensor | None) -> Tensor:
    """``linear`` as float32, rounded to x's dtype before: x ``[N, in]`` -> ``[N, out]``."""
    return ops.linear(x, weight, bias).float() if isinstance(weight, Tensor) else weight.wide_linear(x, bias)


def rows(weight: Tensor | PackedMatrix, ids: Tensor) -> Tensor:
    """Rows of an embedding: ids int64 ``[T]`` -> ``[T, in]``."""
    return weight[ids] if isinstance(weight, Tensor) else weight.rows(ids)


class Linear:
    """``x @ weight.T + bias``; weight ``[out, in]``, a Tensor or a matrix in a weight format."""

    __slots__ = ("bias", "weight")

    def __init__(self, weights: Weights, name: str) -> None:
        self.weight: Tensor | PackedMatrix = weights[f"{name}.weight"]  # or what its layer knows how to use
        self.bias: Tensor | None = weights.get(f"{name}.bias")

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Norm:
    """RMSNorm or LayerNorm over the last dimension, as the spec says."""

    __slots__ = ("bias", "spec", "weight")

    def __init__(self, spec: NormSpec, weights: Weights, name: str) -> None:
        self.spec, self.weight, self.bias = spec, weights.get(f"{name}.weight"), weights.get(f"{name}.bias")

    def __call__(self, x: Tensor) -> Tensor:
        if self.spec.kind == "rms":
            spec = self.spec
            return ops.rms_norm(x, self.weight, spec.eps, offset=spec.offset, fp32_weight=spec.fp32_weight)
        return ops.layer_norm(x, self.weight, self.bias, self.spec.eps)


class EachHeadNorm:
    """A normalization of every head with a weight of its own: x ``[T, H, D]``, weight ``[H, D]`` (StableLM 2)."""

    __slots__ = ("bias", "plain", "weight")

    def __init__(self, spec: NormSpec, weights: Weights, name: str) -> None:
        self.weight, self.bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        self.plain = Norm(spec, {}, "")

    def __call__(self, x: Tensor) -> Tensor:
        y = self.plain(x) * self.weight
        return y if self.bias is None else y + self.bias
