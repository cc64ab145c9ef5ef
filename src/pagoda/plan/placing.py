"""Placements of a model over an accelerator, its host and a disk: for every format the best block, and what runs it.

For each choice of formats: blocks of as many sequences as were asked for, or a half, a quarter, … of them, in batches
of all or a half, a quarter, … of these; the placement of each is a linear program (`placement`), and most tokens a
second win. Policies are tried with the formats that won. Only what is shown in the end is placed in whole layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..core.errors import BudgetError
from ..core.types import KVFormat
from ..core.units import format_bytes
from ..kv.codecs.base import with_dtype
from ..sampling.scratch import grammar_bytes
from ..weights.quantization import Quantization, parse_quantization
from .accounts import SERVER_BYTES, STAGING_BYTES, StepLimits, step_bytes
from .blocks import Block, BlockModel
from .catalogue import DTYPE, MachineType
from .choice import PAGE_SIZE, Choice, longest_of
from .demand import Demand
from .kept import Kept
from .machine import Machine
from .placement import Placement, Tier, place
from .prices import EXACT, Prices
from .subject import Subject

STEP_TOKENS = 2048
"""Of a prompt, that go through a layer at a time."""
ALL, MORE = 1 - 1e-6, 1.02
NO_KV = Kept(0, 0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes of the device, of the host beside it, and of a disk (0: none)."""

    device: int
    host: int
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """One way to lie. ``prompt_seconds`` until the whole block has its first tokens, ``tpot`` for every further one of
    all its sequences. ``num_bytes`` of each item. ``why_not``: what keeps the engine from running it, "" where nothing
    does; ``flags`` are those of ``pagoda serve`` then.
    """

    choice: Choice
    block: Block
    placement: Placement
    num_bytes: dict[str, int]
    working_bytes: int
    prompt_seconds: float
    tpot: float
    tokens_per_second: float
    loss: float
    flags: tuple[str, ...]
    why_not: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data; bytes and seconds."""
        placed, choice = self.placement, self.choice
        return {
            "quantization": choice.quantization, "kv_cache_dtype": choice.kv_cache_dtype, "kv": choice.kv,
            "batch": self.block.batch, "batches": self.block.batches, "num_bytes": self.num_bytes,
            "working_bytes": self.working_bytes, "shares": placed.shares, "used_there": placed.used_there,
            "seconds": placed.seconds, "waits_for": placed.waits_for, "prompt_seconds": self.prompt_seconds,
            "tpot": self.tpot, "tokens_per_second": self.tokens_per_second, "loss": self.loss,
            "flags": list(self.flags), "why_not": self.why_not,
        }  # fmt: skip


class Placer:
    """All placements of one model for one demand. ``host``: this machine's rates, ``kind``: those of the device."""

    def __init__(
        self, subject: Subject, kind: MachineType, host: Machine, prices: Prices | None, demand: Demand,
        budgets: Budgets,
    ) -> None:  # fmt: skip
        self._subject, self._kind, self._host, self._prices = subject, kind, host, prices
        self._demand, self._budgets = demand, budgets
        self._longest = longest_of(demand)
        self._device = kind.rates(subject.shape)
        # Hundreds of blocks share a few formats and policies; each is looked at once.
        self._model, self._kept = cache(self._make_model), cache(self._find_kept)
        self._working_bytes = cache(self._count_working)

    def placements(self, *, max_loss: float | None = None) -> list[Placed]:
        """The best of every choice that fits, each faster than those that lose less. Raises BudgetError where none
        fits, with what each place would need, or none keeps the asked times.
        """
        most = float("inf") if max_loss is None else max_loss
        prices, dtypes = self._prices, ["auto"]
        formats, policies = ["auto"], list[str]()
        if prices is not None:
            formats += [] if self._subject.stored is not None else list(prices.weights)
            dtypes += list(prices.kv_dtypes)
            policies = self._subject.runs(prices.policies, self._longest)
        plain = [Choice(q, kv, EXACT, STEP_TOKENS) for q in formats for kv in dtypes]
        exact = self._fitting(plain, most)
        more = [replace(one.choice, kv=kv) for one in _fastest(exact) for kv in policies if self._could_gain(one)]
        rough = _fastest(exact + (self._fitting(more, most, strict=False) if more else []))
        return _fastest(self._in_time([self._placed(one.choice, one.block, whole=True) for one in rough]))

    def _loss(self, choice: Choice) -> float:
        loss = (
            None if self._prices is None else self._prices.loss(choice.quantization, choice.kv_cache_dtype, choice.kv)
        )
        return 0.0 if loss is None else loss

    def _fitting(self, choices: Sequence[Choice], most_loss: float, *, strict: bool = True) -> list[Placed]:
        found, refused = list[Placed](), list[BudgetError]()
        for choice in choices:
            if self._loss(choice) <= most_loss:
                try:
                    found.append(self._best(choice))
                except BudgetError as error:
                    refused.append(error)
        if not found and strict:
            raise refused[0]
        return found

    def _could_gain(self, placed: Placed) -> bool:
        """Whether the same without any KV would be faster by what counts."""
        free = self._placed(placed.choice, placed.block, kept=NO_KV)
        return free.tokens_per_second > MORE * placed.tokens_per_second

    def _best(self, choice: Choice) -> Placed:
        """Of all blocks, in any shares. Raises BudgetError where not even one sequence fits."""
        sequences = self._demand.concurrency
        while True:
            try:
                return self._best_batches(choice, sequences)
            except BudgetError:
                if sequences == 1:
                    raise
                sequences //= 2

    def _best_batches(self, choice: Choice, sequences: int) -> Placed:
        """Smaller batches for as long as that helps."""
        best, refused = None, None
        for block in _blocks(sequences):
            try:
                found = self._placed(choice, block)
            except BudgetError as error:
                refused = refused or error
                continue
            if best is not None and found.tokens_per_second <= best.tokens_per_second:
                break
            best = found
        if best is None:
            assert refused is not None
            raise refused
        return best

    def _placed(self, choice: Choice, block: Block, *, whole: bool = False, kept: Kept | None = None) -> Placed:
        demand, model = self._demand, self._model(choice.quantization, choice.kv_cache_dtype)
        kept = kept or self._kept(choice.kv, choice.kv_cache_dtype)
        items, working = model.items(block, kept, demand), self._working_bytes(choice.quantization, block)
        placed = place(items, self._tiers(working), model.phases(block, kept, demand), whole=whole)
        flags, why_not = self._runs(choice, block, placed)
        prompt, tpot = placed.seconds["prompt"], placed.seconds["decode"]
        rate = block.sequences * demand.output / (prompt + (demand.output - 1) * tpot)
        return Placed(
            choice, block, placed, {item.name: item.num_bytes for item in items}, working, prompt, tpot, rate,
            self._loss(choice), flags, why_not,
        )  # fmt: skip

    def _make_model(self, quantization: str, kv_dtype: str) -> BlockModel:
        plain = self._subject.stored or Quantization()
        found = plain if quantization == "auto" else parse_quantization(quantization)
        return BlockModel(self._subject.shape, DTYPE, found, self._format(kv_dtype), self._device, self._host)

    def _find_kept(self, kv: str, kv_dtype: str) -> Kept:
        return Kept.of(self._subject.policy(kv, self._longest), self._format(kv_dtype), self._demand, STEP_TOKENS)

    def _format(self, kv_dtype: str) -> KVFormat:
        return with_dtype(self._subject.shape.kv_format(PAGE_SIZE, DTYPE), kv_dtype)

    def _count_working(self, quantization: str, block: Block) -> int:
        """Of the device, beside what a placement divides: the largest step of a batch."""
        limits = StepLimits(min(STEP_TOKENS, block.batch * self._demand.prompt), block.batch, self._longest)
        found = self._model(quantization, "auto").quantization
        return step_bytes(self._subject.shape, DTYPE, found, limits)

    def _tiers(self, working_bytes: int) -> list[Tier]:
        subject, host, budgets = self._subject, self._host, self._budgets
        beside = host.runtime_bytes + subject.tokenizer_bytes + grammar_bytes(subject.shape.vocab_size)
        link = self._kind.host_gigabytes_per_second * 1e9
        tiers = [
            Tier("device", budgets.device - working_bytes),
            Tier("host", budgets.host - beside - STAGING_BYTES - SERVER_BYTES, link, link),
        ]
        if min(tier.capacity for tier in tiers) < 0:
            raise BudgetError(
                f"a step takes {format_bytes(working_bytes)} of the device's {format_bytes(budgets.device)}, and a "
                f"server {format_bytes(beside + STAGING_BYTES + SERVER_BYTES)} of the host's "
                f"{format_bytes(budgets.host)}, before any weights; give --device-memory or --host-memory more"
            )
        rate = host.disk_bytes_per_second
        return tiers + ([Tier("disk", budgets.disk, rate, rate)] if budgets.disk else [])

    def _runs(self, choice: Choice, block: Block, placed: Placement) -> tuple[tuple[str, ...], str]:
        away = [
            f"{1 - shares['device']:.0%} of {name}"
            for name, shares in placed.shares.items()
            if name != "activations" and shares["device"] < ALL
        ]
        if away:
            return (), f"the engine keeps all on its device so far, and {', '.join(away)} would lie elsewhere"
        flags = [
            "--device", "cuda", "--device-memory", str(self._budgets.device), "--max-model-len", str(self._longest),
            "--max-num-seqs", str(block.sequences), "--max-num-batched-tokens", str(STEP_TOKENS),
        ]  # fmt: skip
        return (*flags, *choice.flags), ""

    def _in_time(self, placed: list[Placed]) -> list[Placed]:
        most_ttft, most_tpot = self._demand.slo_ttft or float("inf"), self._demand.slo_tpot or float("inf")
        good = [one for one in placed if one.prompt_seconds <= most_ttft and one.tpot <= most_tpot]
        if not good:
            best = min(placed, key=lambda one: max(one.prompt_seconds / most_ttft, one.tpot / most_tpot))
            raise BudgetError(
                f"no placement keeps the asked times; the nearest ({best.choice}) has its first tokens after "
                f"{best.prompt_seconds:.3g} s and one every {best.tpot:.3g} s; ask for less at a time, or give more"
            )
        return good


def _blocks(sequences: int) -> Iterator[Block]:
    """One batch of all, two of a half, …"""
    batches = 1
    while batches <= sequences:
        if sequences % batches == 0:
            yield Block(sequences // batches, batches)
        batches *= 2


def _fastest(placed: Sequence[Placed]) -> list[Placed]:
    """Those that are faster than every one that loses less, by what counts."""
    kept = list[Placed]()
    for one in sorted(placed, key=lambda one: (one.loss, -one.tokens_per_second)):
        if not kept or one.tokens_per_second > MORE * kept[-1].tokens_per_second:
            kept.append(one)
    return kept
