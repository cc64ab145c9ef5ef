"""Bits by expert: those that much is asked of, and that few bits would change, get more, under a budget for all.

After EdgeMoE (arXiv:2308.14352, 4.1): experts differ in how much they bear and in how often they are asked, so that
bits of their own make a mixture smaller for the same loss, and experts on disk are read sooner and cached in greater
number (`weights.expert_cache`).

    watch      which tokens the router sends to every expert on calibration text, and what its answer counts
    measure    how far fewer bits move the layer's output: mean squared error of a use, times uses
    price      what that does to the model: nats of KL divergence a unit of error, layer by layer
    allocate   bytes go where they save most nats (`mixed.allocate`)

The best uniform bits that fit are a candidate: what is taken loses least, measured on the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pagoda.core.errors import ConfigError
from pagoda.core.types import DTYPE_BYTES
from pagoda.kernels import ops
from pagoda.weights.filling import pack_matrix
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.packed import ExpertStack, PackedMatrix
from pagoda.weights.quantization import EXPERT, Quantization

from .decoder import Decoder
from .layers.linear import linear
from .layers.moe import MoE
from .load import Loaded
from .mixed import JUDGED_TOKENS, TRIED_TOKENS, allocate, first_tokens
from .model import Model
from .quantize import Progress, Tokens, kl, plain_model, run, without_head

CANDIDATES = ("bf16", "int8", "int4(group=32)", "int4")
"""What kernels multiply, and a cache can hold, as it is stored."""
SEEN_TOKENS = 32  # of every expert, on which its error is measured

Rounded = Mapping[int, Sequence[WeightFormat]]
"""Layer -> format of each of its experts."""


@dataclass(frozen=True, slots=True)
class ExpertBits:
    """What was chosen, and nats a token that rounding the experts so loses (KL divergence, on calibration text)."""

    quantization: Quantization
    lost: float


@dataclass(slots=True)
class _Uses:
    """What one expert was asked: the first tokens ``[hidden]`` with the weights of its answers, and how many in all."""

    tokens: list[Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, x: Tensor, weights: Tensor) -> None:
        room = SEEN_TOKENS - len(self.tokens)
        self.tokens += list(x[:room].clone())
        self.weights += weights[:room].tolist()
        self.count += len(x)


class _Watching:
    """A mixture layer that notes what its experts are asked."""

    def __init__(self, inner: MoE) -> None:
        self.inner, self.uses = inner, [_Uses() for _ in range(inner.spec.num_experts)]
        self.num_tokens = 0

    def __call__(self, x: Tensor) -> Tensor:
        ids, weights = self.inner.choose(x)
        self.num_tokens += len(x)
        for expert in ids.unique().tolist():
            at, place = (ids == expert).nonzero(as_tuple=True)
            self.uses[expert].add(x.index_select(0, at), weights[at, place].float())
        return self.inner(x)

    def errors(self, candidates: Sequence[WeightFormat]) -> list[list[float]]:
        """Of every expert in every format: squared error of the layer's output, a token of the text.

        An expert that was never asked counts as if it had been once, by what others were.
        """
        some = next(found for found in self.uses if found.count)
        return [self._errors(e, found if found.count else some, candidates) for e, found in enumerate(self.uses)]

    def _errors(self, expert: int, uses: _Uses, candidates: Sequence[WeightFormat]) -> list[float]:
        x, weights = torch.stack(uses.tokens), torch.tensor(uses.weights)[:, None]
        matrices = self.inner.gate_up[expert], self.inner.down[expert]
        exact = self._answer(x, expert, *matrices)
        asked = max(1, self.uses[expert].count) / self.num_tokens
        moved = [self._answer(x, expert, *(pack_matrix(f, m, m.dtype) for m in matrices)) - exact for f in candidates]
        return [asked * float((weights * m).square().sum(-1).mean()) for m in moved]

    def _answer(self, x: Tensor, expert: int, gate_up: Tensor | PackedMatrix, down: Tensor | PackedMatrix) -> Tensor:
        options = dict(self.inner.options)
        up_bias, down_bias = (None if (b := options.pop(n)) is None else b[expert] for n in ("gate_up_b", "down_b"))
        gate, up = linear(x, gate_up, up_bias).chunk(2, dim=-1)
        inner = ops.gated_activation(gate, up, options.pop("kind"), **options)
        return linear(inner, down, down_bias).float()


def expert_bits(
    loaded: Loaded,
    others: Quantization,
    candidates: Sequence[WeightFormat],
    budget_bytes: int,
    calibration: Tokens,
    progress: Progress | None = None,
) -> ExpertBits:
    """A format for every expert, and ``others`` for all else, all weights together within ``budget_bytes``.

    Raises ConfigError for a model without experts, and for a budget below the smallest model of these formats.
    """
    model = plain_model(loaded)
    watching = _watch(model, calibration)
    if not watching:
        raise ConfigError(f"method 'edgemoe' is for mixtures of experts; {loaded.path} ({loaded.shape.family}) is none")
    experts = {layer: len(found.uses) for layer, found in watching.items()}
    sizes = {layer: [_expert_bytes(model, layer, f) for f in candidates] for layer in watching}
    room = budget_bytes - _bytes_beside(loaded, others)
    least = min(range(len(candidates)), key=lambda level: sum(found[level] for found in sizes.values()))
    price, harm = _Price(model, first_tokens(calibration, TRIED_TOKENS)), dict[str, list[float]]()
    for done, (layer, found) in enumerate(watching.items()):
        errors = found.errors(candidates)
        lost = price({layer: [candidates[least]] * experts[layer]})
        nats = lost / max(sum(error[least] for error in errors), 1e-30)
        harm |= {f"{layer}{EXPERT}{e}": [nats * one for one in error] for e, error in enumerate(errors)}
        if progress is not None:
            progress(done + 1, len(watching))
    levels = allocate(harm, {name: sizes[int(name.partition(EXPERT)[0])] for name in harm}, room)
    tried = [{i: [candidates[levels[f"{i}{EXPERT}{e}"]] for e in range(n)] for i, n in experts.items()}]
    for level, format in enumerate(candidates):
        if sum(sizes[i][level] * n for i, n in experts.items()) <= room:
            tried.append({i: [format] * n for i, n in experts.items()})
    price = _Price(model, first_tokens(calibration, JUDGED_TOKENS))
    lost, best = min(((price(found), found) for found in tried), key=lambda found: found[0])
    own = {f"{name}{EXPERT}{e}": f for i, formats in best.items() for name in _params(i) for e, f in enumerate(formats)}
    return ExpertBits(replace(others, overrides={**others.overrides, **own}), lost)


class _Price:
    """What the model loses on a text with some of its experts rounded."""

    def __init__(self, model: Model, text: Tokens) -> None:
        self._model, self._text = model, text
        self._exact = run(self._decoder(model.weights()), text)

    def __call__(self, formats: Rounded) -> float:
        """KL divergence, nats a token."""
        weights = self._model.weights()
        for layer, each in formats.items():
            for name in _params(layer):
                weights[name] = _stack(weights[name], each)
        return kl(self._exact, run(self._decoder(weights), self._text))

    def _decoder(self, weights: Mapping[str, Tensor]) -> Decoder:
        return Decoder(self._model.spec, weights, rope_length=self._model.rope_length)


def _watch(model: Model, calibration: Tokens) -> dict[int, _Watching]:
    """Mixture layers by number, having read the text."""
    decoder = Decoder(model.spec, model.weights(), rope_length=model.rope_length)
    found = {i: _Watching(block.mlp) for i, block in enumerate(decoder.blocks) if isinstance(block.mlp, MoE)}
    for layer, watching in found.items():
        decoder.blocks[layer].mlp = watching  # type: ignore[assignment]
    for tokens in calibration:
        without_head(decoder, tokens)
    return found


def _stack(matrices: Tensor, formats: Sequence[WeightFormat]) -> ExpertStack:
    """Experts as kernels multiply them."""
    stack = ExpertStack(*matrices.shape)
    stack.experts = [pack_matrix(f, m, m.dtype) for m, f in zip(matrices, formats, strict=True)]
    return stack


def _params(layer: int) -> tuple[str, str]:
    return f"layers.{layer}.mlp.gate_up", f"layers.{layer}.mlp.experts_down"


def _expert_bytes(model: Model, layer: int, format: WeightFormat) -> int:
    return sum(format.num_bytes(*model.weights()[name].shape[1:]) for name in _params(layer))


def _bytes_beside(loaded: Loaded, others: Quantization) -> int:
    """Of everything but experts."""
    none = {m.name: None for m in loaded.shape.matrices if m.role == "experts"}
    beside = replace(others, overrides={**others.overrides, **none})
    experts = sum(m.count * m.rows * m.cols for m in loaded.shape.matrices if m.role == "experts")
    return loaded.shape.weight_bytes(loaded.dtype, beside) - experts * DTYPE_BYTES[loaded.dtype]
