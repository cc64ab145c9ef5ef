"""The price list of weight formats: every format of a model on the same text, beside the same model unpacked.

For each: bytes of the weights, perplexity, KL divergence from the exact model, share of tokens where both put the same
one first, recall of planted facts, and decode speed at batch 1 with the exact model measured just before.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.llm import LLM
from ..models.load import load_model
from ..models.quantize import Tokens, kl, run
from ..sampling.params import SamplingParams
from .quality.recall import RecallCase, recall_case

EXACT = "none"
DECODE_TOKENS, ROUNDS = 64, 3
RECALL_CASES, DISTANCE, DEPTH = 32, 160, 48


@dataclass(frozen=True, slots=True)
class Price:
    """One format. ``perplexity`` of the text, ``kl`` in nats per token, ``top1`` and ``recall`` as shares of 1.

    ``recall`` None: the cases are too long. ``tokens_per_second`` and ``speed`` (beside exact) None: not asked.
    """

    format: str
    num_bytes: int
    bits_per_weight: float
    perplexity: float
    kl: float
    top1: float
    recall: float | None
    tokens_per_second: float | None
    speed: float | None


@dataclass(frozen=True, slots=True)
class PriceList:
    """All prices of one model; the first is the exact one."""

    model: str
    num_tokens: int
    prices: list[Price]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def price(
    model: str,
    formats: Sequence[str],
    texts: Tokens,
    *,
    speed: bool = True,
    memory: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PriceList:
    """Measures ``formats`` of ``model`` on token ids of ``texts``. Raises ConfigError, ModelError or BudgetError."""
    exact: list[Tensor] = []
    prices: list[Price] = []
    names = [EXACT, *(name for name in formats if name != EXACT)]
    for done, name in enumerate(names):
        loaded = load_model(model, quantization=name)
        try:
            decoder = loaded.model._ready()  # type: ignore[union-attr]
            logits = run(decoder, texts)
            exact = exact or logits
            cases = recall_cases(loaded.tokenizer.encode, loaded.shape.max_position)
            recalled = None if not cases else statistics.fmean(_recalled(decoder, case) for case in cases)
            num_bytes = loaded.model.weight_bytes
            bits = 8 * num_bytes / loaded.shape.num_params
        finally:
            loaded.close()
        rate = _decode_rates(model, name, memory) if speed else None
        prices.append(
            Price(
                name,
                num_bytes,
                bits,
                perplexity(texts, logits),
                kl(exact, logits),
                agreement(exact, logits),
                recalled,
                rate and rate[1],
                rate and rate[1] / rate[0],
            )
        )
        if progress is not None:
            progress(done + 1, len(names))
    return PriceList(model, sum(map(len, texts)), prices)


def perplexity(texts: Tokens, logits: list[Tensor]) -> float:
    """Of every token but the first of each text."""
    total, count = 0.0, 0
    for tokens, rows in zip(texts, logits, strict=True):
        wanted = torch.tensor(list(tokens[1:]))
        total -= float(rows[:-1].log_softmax(-1).gather(1, wanted[:, None]).sum())
        count += len(wanted)
    return math.exp(total / max(1, count))


def agreement(exact: list[Tensor], other: list[Tensor]) -> float:
    """Share of places where both models put the same token first."""
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(exact, other, strict=True))
    return same / max(1, sum(a.shape[0] for a in exact))


def recall_cases(encode: Callable[..., list[int]], max_length: int) -> list[RecallCase]:
    """Facts planted ``DISTANCE`` tokens before they are asked for; none where the context is too short."""
    if max_length < DISTANCE + DEPTH + 16:
        return []
    rng = random.Random(0)
    people, places = ("Tom", "Lily", "Ben", "Mia", "Sam"), ("park", "garden", "forest", "house", "river")
    filler = [
        encode(f" {rng.choice(people)} went to the {rng.choice(places)} and played there.", False) for _ in range(64)
    ]
    return [
        recall_case(seed, lambda text: encode(text, False), filler, distance=DISTANCE, depth=DEPTH, distractors=1)
        for seed in range(RECALL_CASES)
    ]


def _recalled(decoder: Any, case: RecallCase) -> float:
    """Share of the value's tokens that come first where they are due."""
    ids = [*case.prompt_ids, *case.answer_ids]
    (logits,) = run(decoder, [ids])
    due = logits[len(case.prompt_ids) - 1 : -1].argmax(-1)
    return float((due == torch.tensor(case.answer_ids)).float().mean())


def _decode_rates(model: str, name: str, memory: str | None) -> tuple[float, float]:
    """(exact, this format): tokens per second of one answer, medians of rounds in turn."""
    with LLM(model, quantization=EXACT, memory=memory) as exact, LLM(model, quantization=name, memory=memory) as llm:
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for found, engine in zip(rates, (exact, llm), strict=True):
                found.append(_rate(engine))
    return statistics.median(rates[0]), statistics.median(rates[1])


def _rate(llm: LLM) -> float:
    params = SamplingParams(max_tokens=DECODE_TOKENS, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    llm.generate("Once upon a time", params)
    return DECODE_TOKENS / (time.perf_counter() - start)
