"""The next token of rows of logits: the likeliest, or one drawn from the ``K`` likeliest, beside torch's own steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pagoda import SamplingParams
from pagoda.kernels.ops import greedy
from pagoda.sampling.chain import choose
from pagoda.sampling.state import SampleState

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

SEQUENCES, ROUNDS, K = (1, 8, 32), 9, 50


def rows(vocab: int, clock: str = "wall") -> Iterator[Measured]:
    """float32 logits [N, ``vocab``], another copy each time, as a step's are new."""
    params = SamplingParams(temperature=1.0, top_k=K, top_p=1.0)
    for num in SEQUENCES:
        logits = torch.randn(4, num, vocab)
        states = [SampleState(params, [], seed=row) for row in range(num)]
        best = {
            "pagoda": lambda number, x=logits: greedy(x[number % 4]).tolist(),
            "torch": lambda number, x=logits: x[number % 4].argmax(-1).tolist(),
            REFERENCE: lambda number, x=logits: plain("greedy")(x[number % 4]).tolist(),
        }
        drawn = {
            "pagoda": lambda number, x=logits, states=states: choose(x[number % 4], states),
            "torch": lambda number, x=logits: _drawn(x[number % 4]),
        }
        for what, ways in (("greedy", best), (f"top_k={K}", drawn)):
            yield Measured({"op": what, "sequences": num}, in_turn(ways, ROUNDS, clock), logits[0].nbytes)


def _drawn(logits: Tensor) -> list[int]:
    values, ids = logits.topk(K, dim=-1)
    drawn: list[int] = ids.gather(1, values.softmax(-1).multinomial(1))[:, 0].tolist()
    return drawn
