"""The price list of weight formats: every format of a model on the same text, beside the same model unpacked.

For each: bytes of the weights, perplexity, KL divergence from the exact model, share of tokens where both put the same
one first, recall of planted facts, and decode speed at batch 1, in turns with the model as it runs by default.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, PagodaError
from ..engine.llm import LLM
from ..models.load import load_model
from ..models.mixed import surprise
from ..models.prune import KEPT
from ..models.quantize import Tokens, kl, run
from ..sampling.params import SamplingParams
from .quality.recall import RecallCase, recall_case
from .weights_made import make
from .weights_names import BY

EXACT = "none"
DECODE_TOKENS, ROUNDS = 64, 3
RECALL_CASES, DISTANCE, DEPTH = 32, 160, 48


@dataclass(frozen=True, slots=True)
class Price:
    """One format. ``perplexity`` of the text, ``kl`` in nats per token, ``top1`` and ``recall`` as shares of 1.

    ``recall`` None: the cases are too long. ``tokens_per_second`` and ``speed`` (beside the default, exact too), and
    all that judges quality: None where it was not asked for.
    """

    format: str
    num_bytes: int
    bits_per_weight: float
    perplexity: float | None
    kl: float | None
    top1: float | None
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
    beside: Sequence[str] = (),
    calibration: Tokens = (),
    quality: bool = True,
    speed: bool = True,
    memory: str | None = None,
    progress: Callable[[str, int], None] = lambda *_: None,
    left_out: Callable[[str, str], None] | None = None,
) -> PriceList:
    """Measures ``formats`` of ``model`` on token ids of ``texts``, and the models ``beside`` that were made of it.

    A format may be one that is made first (`weights_made`), with ``calibration`` where its method needs text.
    ``left_out`` is told the name and the reason of one that cannot be made of this model; without it that is an error.
    ``progress`` is told what is under way, and how many were measured.

    One with fewer tokens (`pagoda prune --vocab`) is compared with the exact model's choice among those.
    Raises ConfigError, ModelError or BudgetError.
    """
    exact: list[Tensor] = []
    prices: list[Price] = []
    names = [EXACT, *(name for name in formats if name != EXACT), *beside]
    with TemporaryDirectory(prefix="pagoda-prices-") as scratch:
        for done, name in enumerate(names):
            progress(name, done)
            if BY in name:
                try:
                    subject = _Subject(name, str(make(model, name, calibration, Path(scratch))), "auto")
                except PagodaError as error:
                    if left_out is None:
                        raise
                    left_out(name, str(error))
                    continue
            elif done >= len(names) - len(beside):
                subject = _Subject(Path(name).name, name, "auto")
            else:
                subject = _Subject(name, model, name)
            found, logits = _price(subject, texts, exact) if quality else (_weighed(subject), exact)
            exact = exact or logits
            if speed:
                this, other = _decode_rates(model, subject, memory)
                found = replace(found, tokens_per_second=other, speed=other / this)
            prices.append(found)
    return PriceList(model, sum(map(len, texts)), prices)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured: its name in the list, and how it is loaded."""

    name: str
    model: str
    quantization: str


def _weighed(subject: _Subject) -> Price:
    """Bytes alone."""
    loaded = load_model(subject.model, quantization=subject.quantization)
    num_bytes, num_params = loaded.model.weight_bytes, loaded.shape.num_params
    loaded.close()
    return Price(subject.name, num_bytes, 8 * num_bytes / num_params, None, None, None, None, None, None)


def _price(subject: _Subject, texts: Tokens, exact: list[Tensor]) -> tuple[Price, list[Tensor]]:
    """All but the speed, and the logits; ``exact`` is empty where this is the exact model."""
    loaded = load_model(subject.model, quantization=subject.quantization)
    try:
        decoder = loaded.model._ready()  # type: ignore[union-attr]
        kept = kept_tokens(loaded.path)
        read = texts if kept is None else renumbered(texts, kept, subject.model)
        logits = run(decoder, read)
        wanted = (exact or logits) if kept is None else [rows[:, kept] for rows in exact]
        cases = recall_cases(loaded.tokenizer.encode, loaded.shape.max_position)
        recalled = None if not cases else statistics.fmean(_recalled(decoder, case) for case in cases)
        num_bytes, num_params = loaded.model.weight_bytes, loaded.shape.num_params
    finally:
        loaded.close()
    measures = perplexity(read, logits), kl(wanted, logits), agreement(wanted, logits)
    return Price(subject.name, num_bytes, 8 * num_bytes / num_params, *measures, recalled, None, None), logits


def kept_tokens(folder: Path) -> list[int] | None:
    """Ids that the tokens of a cut vocabulary had in the model that it was made of; None for a whole one."""
    file = folder / KEPT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def renumbered(texts: Tokens, kept: Sequence[int], name: str) -> list[list[int]]:
    """The texts by the new ids. Raises ConfigError for a token that was not kept."""
    new = {old: number for number, old in enumerate(kept)}
    if any(token not in new for tokens in texts for token in tokens):
        raise ConfigError(f"{name}: its vocabulary was cut for another text; give --text the one that it was cut for")
    return [[new[token] for token in tokens] for tokens in texts]


def perplexity(texts: Tokens, logits: list[Tensor]) -> float:
    """Of every token but the first of each text."""
    return math.exp(surprise(texts, logits))


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


def _decode_rates(model: str, subject: _Subject, memory: str | None) -> tuple[float, float]:
    """(the model as it runs by default, this format or other model): tokens per second of one answer, medians of
    rounds in turn. The default is exact too: plain tensors would be a slower model to be faster than.
    """
    with (
        LLM(model, memory=memory) as exact,
        LLM(subject.model, quantization=subject.quantization, memory=memory) as llm,
    ):
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
