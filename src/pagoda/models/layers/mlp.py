"""The dense feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pagoda.kernels import ops

from ..spec import MLPSpec
from .linear import Linear, Norm, Weights
from .sparse_mlp import SparseNeurons


class MLP:
    """``down(norm?(act(gate) * up))`` when gated, else ``down(norm?(act(up)))``; gate and up are one projection."""

    def __init__(self, spec: MLPSpec, weights: Weights, name: str) -> None:
        self.spec = spec
        self.up = Linear(weights, f"{name}gate_up" if spec.gated else f"{name}up")
        self.down = Linear(weights, f"{name}down")
        self.inner_norm = None if spec.inner_norm is None else Norm(spec.inner_norm, weights, f"{name}inner_norm")

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, hidden]`` -> ``[T, hidden]``."""
        if isinstance(self.up.weight, SparseNeurons):
            return self.up.weight(x, self.up.bias, self.down.bias)
        h = self.up(x)
        if self.spec.gated:
            gate, up = torch.split(h, self.spec.inner, dim=-1)
            h = ops.gated_activation(gate, up, self.spec.act)
        else:
            h = ops.activation(h, self.spec.act)
        if self.inner_norm is not None:
            h = self.inner_norm(h)
        return self.down(h)
