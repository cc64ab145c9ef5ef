"""A feed-forward layer whose neurons stay on disk, and are read where a ReLU lets them through (`weights.neurons`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda.kernels import ops
from pagoda.weights.neurons import NeuronCache
from pagoda.weights.packed import PackedMatrix


@dataclass(frozen=True, slots=True)
class Predictor:
    """Which neurons a token will activate, by a low-rank guess: ``outer @ (inner @ x) + bias > 0``."""

    inner: Tensor
    outer: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x ``[T, hidden]`` -> bool ``[T, neurons]``."""
        return ops.linear(ops.linear(x, self.inner, None), self.outer, self.bias) > 0

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + self.outer.nbytes + self.bias.nbytes


class InRows:
    """Stands where an `MLP` has down: its columns are parts of the neurons' rows."""

    nbytes = 0


class SparseNeurons:
    """Stands where an `MLP` has its weights. A neuron's row in the cache holds the parts that are not in memory:

        exact      | up (where gated) | down |         ``decider``: gate (up where there is none), in memory
        predicted  | gate (where gated) | up | down |  ``decider``: a `Predictor`

    An exact layer leaves out what is zero, so its sum differs from the dense one by the order of roundings alone.
    """

    def __init__(
        self, cache: NeuronCache, layer: int, decider: Tensor | PackedMatrix | Predictor, *, gated: bool, kind: str,
        shape: tuple[int, int],
    ) -> None:  # fmt: skip
        self._cache, self._layer, self._decider, self._gated, self._kind = cache, layer, decider, gated, kind
        self.shape = torch.Size(shape)

    @property
    def nbytes(self) -> int:
        """In memory beside the cache."""
        return self._decider.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None, down_bias: Tensor | None) -> Tensor:
        """``[T, hidden]`` -> ``[T, hidden]``; biases are those of gate and up together, and of down."""
        neurons = self.shape[0] // (2 if self._gated else 1)
        gate_bias, up_bias = (bias, bias) if bias is None or not self._gated else bias.split(neurons)
        decided = None if isinstance(self._decider, Predictor) else self._decide(x, gate_bias)
        active = self._decider(x) if isinstance(self._decider, Predictor) else decided > 0  # type: ignore[operator]
        ids = active.any(0).nonzero().flatten().numpy()
        self._cache.step(self._layer)
        out = torch.zeros(x.shape, dtype=torch.float32)
        for start in range(0, len(ids), self._cache.slots):
            part = ids[start : start + self._cache.slots]
            *others, down = self._cache.rows(self._layer, part).split(x.shape[-1], dim=1)
            index = torch.from_numpy(part)
            biases = [None if b is None else b[index] for b in (gate_bias, up_bias)]
            kept = None if decided is None else decided[:, index]
            hidden = self._hidden(x, kept, others, biases)
            if decided is None:
                hidden = hidden * active[:, index]  # a token's answer is its own, whatever else was read for others
            out += (hidden @ down).float()
        out = out.to(x.dtype)
        return out if down_bias is None else out + down_bias

    def _decide(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = self._decider
        assert not isinstance(weight, Predictor)
        return ops.linear(x, weight, bias) if isinstance(weight, Tensor) else weight.linear(x, bias)

    def _hidden(self, x: Tensor, decided: Tensor | None, parts: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """What goes into down: ``[T, neurons]`` of some neurons."""
        if decided is None:
            decided, parts = ops.linear(x, parts[0], biases[0]), parts[1:]
        if not self._gated:
            return ops.activation(decided, self._kind)
        return ops.gated_activation(decided.contiguous(), ops.linear(x, parts[0], biases[1]), self._kind)
