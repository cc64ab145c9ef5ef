"""Predictors of answer lengths, trained on what a model really answers: ``pagoda calibrate learning_to_rank MODEL``.

The model answers prompts from a file; four of five teach the policy's predictor, the fifth says how good it is: rank
correlation of predicted and true length on prompts that it never saw, beside the histogram that needs no training.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch

from ..core.errors import ConfigError, RequestError
from ..engine.build import build
from ..engine.config import EngineConfig
from ..engine.intake import Intake
from ..sampling.params import SamplingParams
from ..schedule.item import Item
from ..schedule.policies.base import Key, SchedulingPolicy
from ..schedule.prediction.histogram import Histogram
from ..schedule.prediction.probe import Probe
from ..schedule.prediction.quality import kendall, rank_correlation
from ..schedule.prediction.ranker import Ranker

FIELDS = ("prompt", "question", "text", "instruction", "turns")
EPOCHS = 4
LEAST = 20


@dataclass(frozen=True, slots=True)
class Answered:
    """``hidden``: mean hidden state of the prompt, float32 [hidden_size]. ``cut``: it reached ``max_tokens``."""

    prompt: tuple[int, ...]
    num_output: int
    hidden: tuple[float, ...]
    cut: bool


class _Watching(SchedulingPolicy):
    """Order of arrival; notes the hidden states."""

    wants_hidden: ClassVar[bool] = True

    def __init__(self) -> None:
        self.hidden: dict[tuple[int, ...], tuple[float, ...]] = {}

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests"

    def probed(self, item: Item, hidden: Sequence[float]) -> None:
        self.hidden[tuple(item.prompt)] = tuple(hidden)


def read_prompts(path: Path, most: int) -> list[str]:
    """Texts of a file: JSON lines (the first of ``FIELDS``; of turns the first) or a line each, ``.gz`` of them.

    Raises ConfigError naming the file and the line that is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"no prompts at {path}; give JSON lines with one of {', '.join(FIELDS)}, or a text a line")
    is_json = path.name.removesuffix(".gz").endswith(".jsonl")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        found = [_text(path, number, line) if is_json else line.strip() for number, line in enumerate(lines, 1)]
    found = list(dict.fromkeys(text for text in found if text))
    if len(found) < LEAST:
        raise ConfigError(f"{path.name} holds {len(found)} different prompts; give {LEAST} or more")
    Random(0).shuffle(found)
    return found[:most]


def _text(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line) if line.strip() else {}
        found = next((row[name] for name in FIELDS if name in row), "" if not row else None)
        text = found[0] if isinstance(found, list) else found
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"{path.name}, line {number}: {line.strip()[:60]!r} is no JSON object ({error})") from error
    if not isinstance(text, str):
        raise ConfigError(f"{path.name}, line {number}: none of {', '.join(FIELDS)} is a text")
    return text


def answer(
    model: str, texts: Sequence[str], *, max_tokens: int, chat: bool, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Answered], Path]:
    """Greedy answers to all texts, in their order; and the model's folder. Texts that are too long are left out."""
    policy = _Watching()
    built = build(EngineConfig(model, enable_prefix_caching=False, structured_output=False))
    try:
        built.engine.scheduler.use(policy)
        intake, prompts = Intake(built), dict[str, tuple[int, ...]]()
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        for number, text in enumerate(texts):
            ids = intake.render_chat([{"role": "user", "content": text}]) if chat else text
            try:
                request = intake.request(str(number), ids, params)
                built.engine.add(request)
            except RequestError:
                continue
            prompts[request.request_id] = tuple(request.prompt_ids)
        found = dict[int, Answered]()
        while built.engine.has_work:
            for output in built.engine.step():
                prompt, num = prompts[output.request_id], output.usage.completion_tokens
                if output.error is None:
                    found[int(output.request_id)] = Answered(prompt, num, policy.hidden[prompt], num >= max_tokens)
                if progress is not None:
                    progress(len(found), len(prompts))
        return [found[number] for number in sorted(found)], built.loaded.path
    finally:
        built.close()


# Teaching -----------------------------------------------------------------------------------------------------------


def train_ranker(answers: Sequence[Answered]) -> Ranker:
    """Several times through, in another order each time."""
    ranker, random, order = Ranker(), Random(1), list(answers)
    for _ in range(EPOCHS):
        random.shuffle(order)
        for one in order:
            ranker.observe(one.prompt, one.num_output)
    return ranker


def train_probe(answers: Sequence[Answered]) -> Probe:
    """Ridge regression of log(1 + length); the penalty is the one of seven that predicts a held-out quarter best."""
    x = torch.tensor([one.hidden for one in answers], dtype=torch.float64)
    y = torch.log1p(torch.tensor([float(one.num_output) for one in answers], dtype=torch.float64))
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / scale
    split = len(answers) * 3 // 4
    penalties = [10.0**power for power in range(-1, 6)]
    errors = [float(((x[split:] @ w + b - y[split:]) ** 2).mean())
              for w, b in (_ridge(x[:split], y[:split], p) for p in penalties)]  # fmt: skip
    weights, bias = _ridge(x, y, penalties[errors.index(min(errors))])
    return Probe(mean.tolist(), scale.tolist(), weights.tolist(), float(bias))


def _ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    bias = y.mean()
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ (y - bias)), bias


TRAINERS: Mapping[str, Callable[[Sequence[Answered]], Ranker | Probe]] = {
    "learning_to_rank": train_ranker,
    "trail": train_probe,
}
"""Of `schedule.prediction.trained.TAUGHT`, each one's."""


def calibrate(policy: str, answers: Sequence[Answered]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The predictor as plain data, and how good it is on every fifth answer. Raises ConfigError where the lengths have
    nothing to teach.
    """
    if len(answers) < LEAST or len({one.num_output for one in answers}) < 3:
        raise ConfigError(
            f"{len(answers)} answers of {len({one.num_output for one in answers})} lengths teach nothing; give more "
            "prompts, or more --max-tokens"
        )
    known, unseen = [one for i, one in enumerate(answers) if i % 5], list(answers[::5])
    trained = TRAINERS[policy](known)
    truth = [float(one.num_output) for one in unseen]
    predictions = {policy: [_predict(trained, one) for one in unseen], "histogram": list(_by_histogram(known, unseen))}
    notes = {
        "num_answers": len(answers),
        "num_cut": sum(one.cut for one in answers),
        "mean_tokens": sum(one.num_output for one in answers) / len(answers),
        **{f"spearman_{name}": rank_correlation(found, truth) for name, found in predictions.items()},
        **{f"kendall_{name}": kendall(found, truth) for name, found in predictions.items()},
    }
    return TRAINERS[policy](answers).as_dict(), notes


def _predict(predictor: Ranker | Probe, one: Answered) -> float:
    return predictor.score(one.prompt) if isinstance(predictor, Ranker) else predictor.length(one.hidden)


@dataclass
class _Item:
    prompt: Sequence[int]
    num_output: int = 0
    max_output: int | None = None


def _by_histogram(known: Sequence[Answered], unseen: Sequence[Answered]) -> Iterator[float]:
    histogram = Histogram()
    for one in known:
        histogram.observe(_Item(one.prompt, one.num_output))  # type: ignore[arg-type]
    for one in unseen:
        yield float(histogram.quantile(_Item(one.prompt), 0.5))  # type: ignore[arg-type]
