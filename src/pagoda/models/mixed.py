"""Bits by parameter: every matrix in the format where its bytes do most, under a budget for all of them.

After OHQ (arXiv:2309.01945, 3.2), which measures what each layer's rounding does to the model and solves for bits under
a budget, and the Hessian-aware interlayer methods, whose point is that what layers lose does not simply add up:

    measure    every matrix alone in every format that no other beats in bytes and in what its outputs lose
    allocate   bytes go where they save most of that per byte
    exchange   in place, with all others rounded: bytes go from where they do least to where they do most, as long as
               the model gains on more text than the moves were chosen by

What is lost has two measures, in nats a token: KL divergence of the model's choice from the exact one's, and how much
less likely the text became. KL is what is made small: the other changes by chance as much as by a matrix. But where the
text is less likely than to the best model of uniform bits, which is one of those that are compared, that counts as
well: by the mean of both, mixed bits were nearer to the exact model and worse at the text (lantern at the bytes of
int4(group=32), 16,384 tokens: KL 0.134 instead of 0.144, perplexity 3.88 instead of 3.85).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pagoda.core.errors import ConfigError
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.methods import GRIDS, METHODS, InputStats, output_error
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.quantization import Quantization

from .decoder import Decoder
from .load import Loaded
from .model import EMBED, Model
from .quantize import Codes, Progress, Tokens, kl, plain_model, run, with_stats

CANDIDATES = (
    "bf16", "int8", "int5(group=48)", "int5", "int4(group=32)", "int4(group=64)", "int4", "int3(rank=0)",
    "int2(rank=8)", "ternary",
)  # fmt: skip
JUDGED_TOKENS = 16_384  # of the calibration text, on which models are compared
TRIED_TOKENS = 2048  # of those, for single matrices: there are hundreds of them
ROUNDS = 4  # of exchanges at most
LEAST_GAIN = 0.005  # of what uniform bits lose: less is chance, and does not come back on other text
SINGLES = 6  # that are tried one by one

Levels = dict[str, int]
"""Parameter -> which of the candidates."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """What was chosen, its codes by parameter, and nats a token that it loses (see above)."""

    quantization: Quantization
    codes: Mapping[str, Codes]
    lost: float


class _Measured:
    """A model whose matrices stand ready in every candidate, and a text to judge it on."""

    def __init__(
        self, loaded: Loaded, candidates: Sequence[WeightFormat], learned: Tokens, judged: Tokens, method: str
    ) -> None:
        self.model = model = plain_model(loaded)
        self.names = [m.name for m in model.shape.matrices if m.role in ("linear", "embed")]
        self.texts = {count: first_tokens(judged, count) for count in (TRIED_TOKENS, JUDGED_TOKENS)}
        decoder = Decoder(model.spec, model.weights(), rope_length=model.rope_length)
        self.exact = {count: run(decoder, text) for count, text in self.texts.items()}
        self.uniform_losses = (0.0, 0.0)
        self.candidates = list(candidates)
        self.codes: dict[str, list[Codes]] = {}
        self.useful: dict[str, list[int]] = {}
        self.sizes = {n: [f.num_bytes(*model.weights()[n].shape) for f in candidates] for n in self.names}
        for name, weight, stats in _with_stats(model, learned):
            if name in self.names:
                self.codes[name] = [_codes(weight, f, stats, method) for f in candidates]
                errors = [self._error(name, level, stats) for level in range(len(candidates))]
                self.useful[name] = useful(self.sizes[name], errors)

    def _error(self, name: str, level: int, stats: InputStats | None) -> float:
        weight, other = self.model.weights()[name].float(), self.dense(name, level).float()
        return float((weight - other).square().sum()) if stats is None else output_error(weight, other, stats)

    def dense(self, name: str, level: int) -> Tensor:
        weight = self.model.weights()[name]
        return CodedMatrix(self.candidates[level], self.codes[name][level], weight.shape[1], weight.dtype).dense()

    def tried(self, levels: Mapping[str, int]) -> float:
        """KL divergence with these parameters rounded and all others exact, on little text.

        What the text costs more would say little on so few tokens: it changes by chance as much as by a matrix.
        """
        return self.losses(levels, TRIED_TOKENS)[0]

    def judged(self, levels: Mapping[str, int]) -> float:
        """KL divergence beyond that of ``uniform_losses``, and what the text costs beyond them, on all of the text."""
        (divergence, cost), (uniform_divergence, uniform_cost) = self.losses(levels, JUDGED_TOKENS), self.uniform_losses
        return divergence - uniform_divergence + max(0.0, cost - uniform_cost)

    def losses(self, levels: Mapping[str, int], count: int) -> tuple[float, float]:
        """KL divergence, and what the text costs more."""
        weights = {**self.model.weights(), **{name: self.dense(name, level) for name, level in levels.items()}}
        decoder = Decoder(self.model.spec, weights, rope_length=self.model.rope_length)
        text, exact, found = self.texts[count], self.exact[count], run(decoder, self.texts[count])
        return kl(exact, found), surprise(text, found) - surprise(text, exact)

    def uniform(self, budget_bytes: int) -> list[Levels]:
        """Every format for all linear layers that fits, with the best for embedding and head that then does."""
        roles, levels = {n: self.model.shape_role(n) for n in self.names}, range(len(self.candidates))
        pairs = [
            {n: embed if roles[n] == "embed" else linear for n in self.names} for linear in levels for embed in levels
        ]
        fitting = [found for found in pairs if self.bytes_of(found) <= budget_bytes]
        best: dict[int, Levels] = {}
        for found in fitting:
            linear = next((found[n] for n in self.names if roles[n] == "linear"), 0)
            if linear not in best or self.bytes_of(found) > self.bytes_of(best[linear]):
                best[linear] = found
        return list(best.values())

    def bytes_of(self, levels: Mapping[str, int]) -> int:
        return sum(self.sizes[name][level] for name, level in levels.items())


def mixed(
    loaded: Loaded,
    candidates: Sequence[WeightFormat],
    budget_bytes: int,
    calibration: Tokens,
    progress: Progress | None = None,
    *,
    method: str = "gptq",
) -> Mixed:
    """Formats and codes by parameter, all weights together within ``budget_bytes``. Codes are chosen by ``method``
    where it knows the format, to the nearest elsewhere.

    Raises ConfigError for a budget below the smallest model of these formats.
    """
    measured = _Measured(loaded, candidates, *_halves(calibration), method)
    names, model = measured.names, measured.model
    room = budget_bytes - (model.weight_bytes - sum(model.weights()[name].nbytes for name in names))
    harm: dict[str, list[float]] = {}
    for done, name in enumerate(names):
        kept = measured.useful[name]
        harm[name] = [measured.tried({name: level}) if level in kept else inf for level in range(len(candidates))]
        if progress is not None:
            progress(done + 1, len(names))
    starts = [*measured.uniform(room), allocate(harm, measured.sizes, room)]
    measured.uniform_losses = min(
        (measured.losses(start, JUDGED_TOKENS) for start in starts[:-1]), key=sum, default=(0, 0)
    )
    lost, levels = min(((measured.judged(start), start) for start in starts), key=lambda found: found[0])
    least = LEAST_GAIN * (sum(measured.uniform_losses) / 2 or abs(lost))
    of_all = (measured.tried, measured.judged, measured.useful)
    _, levels = exchange(levels, lost, measured.sizes, room, *of_all, least_gain=least)
    formats = {name: candidates[level] for name, level in levels.items()}
    every = _with_stats(model, calibration)
    codes = {name: _codes(weight, formats[name], stats, method) for name, weight, stats in every if name in formats}
    return Mixed(Quantization(overrides=formats), codes, sum(measured.losses(levels, JUDGED_TOKENS)) / 2)


def _with_stats(model: Model, texts: Tokens) -> Iterator[tuple[str, Tensor, InputStats | None]]:
    """As `with_stats`, of the head too. Where it is the embedding as well, its rows count as they are looked up: an
    error in any direction as much as one in the mean direction of what it is multiplied with.

    Of the tied matrices of lantern and stories260K alone in int4(group=32), KL divergence: 0.080 and 0.028 by rounding,
    0.094 and 0.014 by gptq for the head only, 0.074 and 0.015 so.
    """
    for name, weight, stats in with_stats(model, texts, roles=("linear", "embed")):
        if stats is not None and name == EMBED:
            stats.gram += torch.eye(len(stats.gram)) * stats.gram.diagonal().mean()
        yield name, weight, stats


def _codes(weight: Tensor, format: WeightFormat, stats: InputStats | None, method: str) -> Codes:
    known = isinstance(format, GRIDS) and stats is not None
    return METHODS[method if known else "rtn"](weight.float(), format, stats)


def _halves(calibration: Tokens) -> tuple[Tokens, Tokens]:
    """The texts that codes are chosen on while models are compared, and those that they are compared on: codes look
    better than they are on the text that they were fitted to. Little text is both.
    """
    total = sum(map(len, calibration))
    if total < 4 * TRIED_TOKENS:
        return calibration, calibration
    wanted, at = min(JUDGED_TOKENS, total // 3), len(calibration)
    while sum(map(len, calibration[at:])) < wanted:
        at -= 1
    return calibration[:at], calibration[at:]


def surprise(texts: Tokens, logits: Sequence[Tensor]) -> float:
    """Mean nats of every token but the first of each text: the logarithm of perplexity."""
    total = count = 0.0
    for tokens, rows in zip(texts, logits, strict=True):
        wanted = torch.tensor(list(tokens[1:]))
        total -= float(rows[:-1].log_softmax(-1).gather(1, wanted[:, None]).sum())
        count += len(wanted)
    return total / max(1.0, count)


def allocate(harm: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[int]], budget_bytes: int) -> Levels:
    """The level of every name that keeps the sum of harm low within the bytes: all begin with fewest bytes, and the
    step that lowers the sum most per byte is taken as long as it fits. Raises ConfigError if none fits.
    """
    levels = {name: _smallest(sizes[name], harm[name]) for name in sizes}
    left = budget_bytes - sum(sizes[name][level] for name, level in levels.items())
    if left < 0:
        raise ConfigError(f"the budget is {-left} bytes below the smallest model of these formats")
    while True:
        steps = [
            ((harm[n][now] - harm[n][to]) / max(1, sizes[n][to] - sizes[n][now]), n, to)
            for n, now in levels.items()
            for to in range(len(sizes[n]))
            if harm[n][to] < harm[n][now] and sizes[n][to] - sizes[n][now] <= left
        ]
        if not steps:
            return levels
        _, name, to = max(steps)
        left -= sizes[name][to] - sizes[name][levels[name]]
        levels[name] = to


def exchange(
    levels: Levels,
    lost: float,
    sizes: Mapping[str, Sequence[int]],
    budget_bytes: int,
    tried: Callable[[Levels], float],
    judged: Callable[[Levels], float],
    useful: Mapping[str, Sequence[int]],
    *,
    least_gain: float = 0.0,
) -> tuple[float, Levels]:
    """Bytes from where they do least to where they do most, measured in place: what is lost then, and the levels.

    Never worse than before, never above the budget. Moves are chosen by ``tried`` and kept by ``judged``, where that
    gains more than ``least_gain``; ``useful``: the levels that are looked at.
    """
    for _ in range(ROUNDS):
        ups, downs, now_tried = list[_Move](), list[_Move](), tried(levels)
        for name, now in levels.items():
            for to in _beside(sizes[name], now, useful[name]):
                move = (tried(levels | {name: to}) - now_tried, name, to)
                if sizes[name][to] <= sizes[name][now]:
                    downs.append(move)
                elif move[0] < 0:
                    ups.append(move)
        found = _better(levels, lost - least_gain, sizes, budget_bytes, judged, ups, downs)
        if found is None:
            break
        lost, levels = found
    return lost, levels


_Move = tuple[float, str, int]
"""What more is lost, the parameter, and its new level."""


def _better(
    levels: Levels,
    most: float,
    sizes: Mapping[str, Sequence[int]],
    budget_bytes: int,
    judged: Callable[[Levels], float],
    ups: Sequence[_Move],
    downs: Sequence[_Move],
) -> tuple[float, Levels] | None:
    """The first group of exchanges that loses less than ``most``, by ``judged``; None where none does."""

    def per_byte(move: _Move) -> float:
        return move[0] / max(1, abs(sizes[move[1]][move[2]] - sizes[move[1]][levels[move[1]]]))

    rising, falling = sorted(ups, key=per_byte), sorted(downs, key=per_byte)
    for chosen in _groups(rising):
        new, gained = dict(levels), sum(up[0] for up in chosen)
        new |= {name: to for _, name, to in chosen}
        for down in falling:
            if sum(sizes[n][level] for n, level in new.items()) <= budget_bytes:
                break
            if new[down[1]] == levels[down[1]]:
                new[down[1]], gained = down[2], gained + down[0]
        fits = sum(sizes[n][level] for n, level in new.items()) <= budget_bytes
        if fits and gained < 0 and (now := judged(new)) < most:
            return now, new
    return None


def _groups(moves: Sequence[_Move]) -> Iterator[Sequence[_Move]]:
    """All of them, the better half, quarter, …, and at last the best ones singly."""
    count = len(moves)
    while count:
        yield moves[:count]
        count //= 2
    yield from ([move] for move in moves[1:SINGLES])


def _beside(sizes: Sequence[int], level: int, useful: Sequence[int]) -> list[int]:
    """The levels of next more and next fewer bytes, and those of as many."""
    others = [other for other in useful if other != level]
    more = min((sizes[o] for o in others if sizes[o] > sizes[level]), default=-1)
    fewer = max((sizes[o] for o in others if sizes[o] < sizes[level]), default=-1)
    return [other for other in others if sizes[other] in (more, fewer, sizes[level])]


def useful(sizes: Sequence[int], errors: Sequence[float]) -> list[int]:
    """Levels that no other beats: as few bytes and less lost, or as little lost and fewer bytes."""

    def beats(a: int, b: int) -> bool:
        return (sizes[a], errors[a]) != (sizes[b], errors[b]) and sizes[a] <= sizes[b] and errors[a] <= errors[b]

    every = range(len(sizes))
    return [level for level in every if not any(beats(other, level) for other in every)]


def _smallest(sizes: Sequence[int], harm: Sequence[float]) -> int:
    return min(range(len(sizes)), key=lambda level: (sizes[level], harm[level]))


def first_tokens(texts: Tokens, count: int) -> list[Sequence[int]]:
    """As many of the texts as have ``count`` tokens together; the last may be cut."""
    found, left = [], count
    for tokens in texts:
        if left <= 1:
            break
        found.append(tokens[:left])
        left -= len(tokens)
    return found
