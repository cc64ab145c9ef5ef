"""Codes and scales trained against the exact model's predictions, all matrices together.

Methods that go matrix by matrix make up for what a matrix loses at its own outputs; what the losses of all matrices do
to the model together they do not see. Here the rounded model runs whole, and gradient descent makes the KL divergence
of its predictions from the exact model's small:

    start    codes that gptq chose, of linear layers, and to the nearest, of embedding and head
    scales   are stretched by a factor each (EfficientQAT, arXiv:2407.11062, 3.3; PEQA, arXiv:2305.14152); zero points
             stay
    codes    have places between the integers, at first on them, and round to the nearest; gradients pass rounding
             straight through (the unit of change is SignRound's, arXiv:2309.05516). To begin where the exact weights
             lie undoes what gptq has made up for: lantern in int4(group=32) went from 0.18 nats to 0.48 and, in three
             passes, back to 0.25
    judge    on texts that are held back, after every pass over the others; the best of all is taken, the start too

Matching the exact model on text, instead of learning the text anew, is LLM-QAT's (arXiv:2305.17888). What comes out has
the format, the bytes and the kernels of any other model of its format: everything is rounded as it is stored whenever
the model runs. Activations are exact meanwhile, also where a format rounds them, and so are norms and biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pagoda.core.errors import ConfigError
from pagoda.kernels.dispatch import restricted
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.weights.methods import GRIDS, METHODS, grid_of
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.quantization import Quantization
from pagoda.weights.trained import TrainedMatrix

from .decoder import Decoder
from .load import Loaded
from .model import Model
from .quantize import Codes, Progress, Tokens, plain_model, with_stats

PASSES = 4  # over the texts
BATCH_TOKENS = 256  # more steps do more than larger ones: lantern, three passes, 0.1617 nats; with 1024 tokens 0.1631
PLACE_RATE = 0.01  # steps of a format that a code's place moves at a time, at first
STRETCH_RATE = 0.0005  # of a scale, at a time, at first; faster, scales learn the text by heart
HELD_BACK = 8  # one of so many texts is judged on
WEIGHT_BYTES = 40  # of a weight that is trained: place, gradient, two moments, and what a step makes of it


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A text, and what the exact model's head is fed at each of its tokens ``[tokens, hidden]``."""

    tokens: Sequence[int]
    hidden: Tensor


def distill(
    loaded: Loaded,
    quantization: Quantization,
    calibration: Tokens,
    progress: Progress | None = None,
    *,
    start: Mapping[str, Codes] | None = None,
    seed: int = 0,
) -> dict[str, Codes]:
    """Codes by parameter. The same text, seed and number of threads give the same codes.

    ``start``: codes to begin with, of all matrices but experts; those in a format that has no scales to train stay.
    Without it every linear layer's format has to be one that gptq knows. ``progress``: tokens done and to do.
    Raises ConfigError for another format, and where there is no text; BudgetError where the ledger has no room.
    """
    model = plain_model(loaded)
    texts = [text for text in calibration if len(text) > 1]
    if not texts:
        raise ConfigError("method 'distill' needs calibration text")
    for matrix in model.shape.matrices:
        found = quantization.of(matrix.name, matrix.role)
        if start is None and matrix.role == "linear" and found is not None:
            grid_of(found)
    codes = dict(start) if start is not None else _start(model, quantization, texts)
    with (
        loaded.footprint.passing("training", training_bytes(model, quantization, texts), "codes and scales"),
        restricted("reference"),  # gradients pass through plain torch only
    ):
        return codes | _School(model, quantization, codes, texts, seed).train(progress)


def training_bytes(model: Model, quantization: Quantization, texts: Tokens) -> int:
    """Beside the exact model (an upper estimate)."""
    shape, longest = model.shape, max(map(len, texts))
    tokens = BATCH_TOKENS + longest
    trained = sum(m.rows * m.cols for m in shape.matrices if isinstance(quantization.of(m.name, m.role), GRIDS))
    layer = 2 * (shape.attention_floats + shape.mlp_floats) + 4 * shape.hidden_size + 4 * shape.num_q_heads * longest
    told, logits = sum(map(len, texts)) * shape.hidden_size, 6 * shape.vocab_size
    experts = sum(m.rows * m.cols * m.count for m in shape.matrices if m.role == "experts")
    return trained * WEIGHT_BYTES + 4 * (2 * experts + told + tokens * (shape.num_layers * layer + logits))


def _start(model: Model, quantization: Quantization, texts: Tokens) -> dict[str, Codes]:
    codes = {}
    for name, weight, stats in with_stats(model, texts):
        role = model.shape_role(name)
        format = quantization.of(name, role)
        if format is not None and role in ("linear", "embed"):
            codes[name] = METHODS["gptq" if role == "linear" else "rtn"](weight.float(), format, stats)
    return codes


class _School:
    """The rounded model, what it is taught, and what it is judged on."""

    def __init__(
        self, model: Model, quantization: Quantization, codes: Mapping[str, Codes], texts: Tokens, seed: int
    ) -> None:
        self.order = torch.Generator().manual_seed(seed)
        self.exact = Decoder(model.spec, model.weights(), rope_length=model.rope_length)
        self.trained: dict[str, TrainedMatrix] = {}
        weights = dict(model.weights())
        for name, weight in model.weights().items():
            format = quantization.of(name, model.shape_role(name))
            if model.shape_role(name) == "experts":
                weights[name] = _rounded_experts(quantization, name, weight)
            elif format is None or name not in codes:
                continue
            elif isinstance(format, GRIDS):
                weights[name] = self.trained[name] = TrainedMatrix(format, codes[name], weight.shape[1], weight.dtype)
            else:
                weights[name] = CodedMatrix(format, codes[name], weight.shape[1], weight.dtype).dense()
        self.rounded = Decoder(model.spec, weights, rope_length=model.rope_length)
        with torch.no_grad():
            lessons = [_Lesson(text, _hidden(self.exact, [text])) for text in texts]
        self.judged = lessons[HELD_BACK - 1 :: HELD_BACK] or lessons
        self.taught = [lesson for at, lesson in enumerate(lessons) if (at + 1) % HELD_BACK] or lessons

    def train(self, progress: Progress | None) -> dict[str, Codes]:
        """The best codes by what is judged, of the start and of every pass; none where no format has scales."""
        if not self.trained:
            return {}
        groups = [
            {"params": [m.places for m in self.trained.values()], "lr": PLACE_RATE},
            {"params": [m.stretch for m in self.trained.values()], "lr": STRETCH_RATE},
        ]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        rates = [group["lr"] for group in adam.param_groups]
        total, done = PASSES * sum(len(lesson.tokens) for lesson in self.taught), 0
        least, best = self.judge(), self._codes()
        for _ in range(PASSES):
            for batch in self._batches():
                for group, rate in zip(adam.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - done / total)
                self._step(adam, batch)
                done += sum(len(lesson.tokens) for lesson in batch)
                if progress is not None:
                    progress(done, total)
            if (lost := self.judge()) < least:
                least, best = lost, self._codes()
        return best

    def _step(self, adam: torch.optim.Adam, batch: Sequence[_Lesson]) -> None:
        adam.zero_grad()
        for matrix in self.trained.values():
            matrix.refresh()
        self._divergence(batch).backward()
        adam.step()
        for matrix in self.trained.values():
            matrix.confine()

    @torch.no_grad()
    def judge(self) -> float:
        """KL divergence on the texts that are held back, nats a token."""
        for matrix in self.trained.values():
            matrix.refresh()
        total = sum(float(self._divergence([lesson])) * len(lesson.tokens) for lesson in self.judged)
        return total / sum(len(lesson.tokens) for lesson in self.judged)

    def _divergence(self, batch: Sequence[_Lesson]) -> Tensor:
        with torch.no_grad():
            wanted = self.exact.logits(torch.cat([lesson.hidden for lesson in batch])).log_softmax(-1)
        found = self.rounded.logits(_hidden(self.rounded, [lesson.tokens for lesson in batch])).log_softmax(-1)
        return functional.kl_div(found, wanted, reduction="sum", log_target=True) / len(found)

    def _codes(self) -> dict[str, Codes]:
        return {name: matrix.codes() for name, matrix in self.trained.items()}

    def _batches(self) -> Iterator[list[_Lesson]]:
        batch: list[_Lesson] = []
        for at in torch.randperm(len(self.taught), generator=self.order).tolist():
            batch.append(self.taught[at])
            if sum(len(lesson.tokens) for lesson in batch) >= BATCH_TOKENS:
                yield batch
                batch = []
        if batch:
            yield batch


def _rounded_experts(quantization: Quantization, name: str, stack: Tensor) -> Tensor:
    """Experts ``[experts, rows, cols]`` as they are stored beside what is trained: to the nearest."""
    formats = [quantization.of(name, "experts", expert) for expert in range(len(stack))]
    rounded = [
        weight if format is None else format.dequantize(METHODS["rtn"](weight.float(), format, None), weight.shape[1])
        for weight, format in zip(stack, formats, strict=True)
    ]
    return torch.stack([weight.to(stack.dtype) for weight in rounded])


def _hidden(decoder: Decoder, texts: Tokens) -> Tensor:
    """Hidden states ``[tokens of all texts, hidden]``; gradients pass."""
    lengths = [len(text) for text in texts]
    ids = torch.tensor([token for text in texts for token in text])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return decoder.forward(ids, positions, DenseView(DenseCache(), range(len(texts)), lengths))
