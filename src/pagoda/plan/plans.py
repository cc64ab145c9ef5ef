"""Every way to run a model that fits a budget, and the best of them: quality, tokens a second and bytes.

A plan is a weight format, a way to store KV, a KV policy and a step size. What it takes is the sum that the engine will
lease (`accounts`); how fast it is comes from the machine's rates (`roofline`); what it loses was measured (`prices`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

from ..budget.reconcile import LATE_CODE_BYTES
from ..core.errors import BudgetError
from ..core.types import KVFormat
from ..core.units import format_bytes
from ..kv.codecs.base import with_dtype
from ..kv.grammar import parse_policy
from ..models.stream_plan import StreamPlan
from ..sampling.scratch import grammar_bytes
from .accounts import SERVER_BYTES, STAGING_BYTES, Accounts, StepLimits, step_bytes
from .choice import PAGE_SIZE, Choice
from .demand import Demand
from .far import Disk, FarKV, FarSteps
from .kept import Kept
from .machine import Machine
from .placement import Item, Phase, Placement, Tier, Use, place
from .prices import EXACT, OFFLOAD, Prices
from .steps import step_model
from .streamed import Rooms, Streamed
from .subject import Subject
from .work import StepModel, Work

STEP_TOKENS = (2048, 1024, 512, 256, 128)
LEAST_POOL_TOKENS = 16 * PAGE_SIZE
"""Of the pool of an engine whose KV lies in a lower tier (`engine.sizing`)."""
EPSILON = 0.02
"""A plan that is better by less than this share in everything is not worth a line of its own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run the model.

    running    requests that fit at a time (at most as many as asked)
    ttft       seconds to the first token of a request that arrives while the others decode
    ttft_alone  the same while nobody decodes
    tpot       seconds between two tokens of an answer while all decode
    tokens_per_second   of all answers, prompts included in the time
    loss       nats a token beside the exact model
    loading_bytes   what is leased while the weights are read
    read_bytes      of weights that stay on disk, read by a step with one token of every request; 0: all are in memory
    far        KV in a lower tier, where it lies there; None: in the pool
    """

    choice: Choice
    accounts: Accounts
    running: int
    ttft: float
    ttft_alone: float
    tpot: float
    tokens_per_second: float
    loss: float
    flags: tuple[str, ...]
    loading_bytes: int
    read_bytes: int = 0
    far: FarKV | None = None

    @property
    def peak_bytes(self) -> int:
        """The most that is leased at any time: while the weights are read, or when everything runs."""
        return max(self.accounts.total, self.loading_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; bytes and seconds."""
        found = asdict(self) | {"accounts": self.accounts.as_dict(), "total_bytes": self.accounts.total}
        found |= {"peak_bytes": self.peak_bytes}
        return found | {"flags": list(self.flags)}


@dataclass(frozen=True, slots=True)
class Spill:
    """Over memory and a disk: ``num_bytes`` of weights and KV, and their shares."""

    choice: Choice
    placement: Placement
    num_bytes: dict[str, int]

    @property
    def seconds(self) -> float:
        """Of a decode step."""
        return self.placement.seconds["decode"]

    @property
    def runs_as(self) -> Choice:
        """What the engine is told for it; it finds by itself how many weights it has to read from disk."""
        return replace(self.choice, kv=OFFLOAD if self.placement.share("kv", "disk") else EXACT)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; bytes and seconds."""
        choice, placed = self.choice, self.placement
        return {
            "weights": choice.quantization, "kv_cache_dtype": choice.kv_cache_dtype, "shares": placed.shares,
            "num_bytes": self.num_bytes, "kv": self.runs_as.kv, "seconds": self.seconds,
            "waits_for": placed.waits_for["decode"],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Division:
    """How a choice divides the budget. ``least_bytes``: the least budget for one request."""

    beside: Accounts
    stream: StreamPlan | None
    running: int
    kv_bytes: int
    loading_bytes: int
    least_bytes: int
    far: FarKV | None = None


class Planner:
    """All plans of one model on one machine for one demand, inside ``budget_bytes``. ``disk``: what KV may have of one,
    where it does not fit beside the rest.
    """

    def __init__(
        self, subject: Subject, machine: Machine, prices: Prices | None, demand: Demand, budget_bytes: int,
        disk: Disk | None = None,
    ) -> None:  # fmt: skip
        self._subject, self._machine, self._prices, self._disk = subject, machine, prices, disk
        self._demand, self._budget = demand, budget_bytes
        self._longest = -(-demand.length // PAGE_SIZE) * PAGE_SIZE
        if self._longest > subject.shape.max_position:
            raise BudgetError(
                f"prompt and answer together have {demand.length} tokens, but positions of {subject.name} end at "
                f"{subject.shape.max_position}; ask for fewer"
            )
        # A thousand choices share a few formats, policies and step sizes; each is looked at once.
        self._policy, self._quantization = cache(parse_policy), cache(subject.quantization)
        self._kept_of, self._format_of = cache(self._find_kept), cache(self._find_format)
        self._weight_bytes, self._passing_bytes = cache(self._count_weights), cache(self._count_passing)
        self._step_bytes, self._step_model = cache(self._count_step), cache(self._find_steps)

    def plan(self, choice: Choice) -> Plan:
        """That one. Raises BudgetError where it does not fit."""
        found = self._divide(choice)
        if found.far is not None and self._disk is not None and not found.running:
            tier = self._kept(choice).peak_blocks * found.far.fmt.block_bytes
            if tier > self._disk.num_bytes:
                raise BudgetError(
                    f"{choice}: the KV of one request takes {format_bytes(tier)} of disk, and "
                    f"{format_bytes(self._disk.num_bytes)} were given"
                )
        if not found.running:
            raise BudgetError(
                f"{choice} does not fit into {format_bytes(self._budget)}; the nearest budget that can is "
                f"{-(-found.least_bytes >> 20)}MiB"
            )
        return self._plan(choice, found)

    @property
    def fits(self) -> bool:
        """Whether any plan fits without a slower tier."""
        return any(self._divide(choice).running for choice in self._choices())

    def plans(self, *, max_loss: float | None = None) -> list[Plan]:
        """Those that fit and keep the asked times, none dominated by another; the least loss first.

        Raises BudgetError with the nearest budget, or the nearest times, when there is none.
        """
        smallest: int | None = None
        fitting: list[Plan] = []
        for choice in self._choices():
            if max_loss is not None and self._loss(choice) > max_loss:
                continue
            if choice.offloads and self._fits_near(choice):
                continue
            found = self._divide(choice)
            smallest = found.least_bytes if smallest is None else min(smallest, found.least_bytes)
            if found.running:
                fitting.append(self._plan(choice, found))
        if not fitting:
            assert smallest is not None
            raise BudgetError(
                f"no plan fits {self._subject.name} with {self._demand.length} tokens into "
                f"{format_bytes(self._budget)}; the nearest budget that can is {-(-smallest >> 20)}MiB"
            )
        return front(self._in_time(fitting))

    def _fits_near(self, choice: Choice) -> bool:
        """Whether all that was asked for lies in memory, weights and KV."""
        found = self._divide(replace(choice, kv=EXACT))
        return found.stream is None and found.running == self._demand.concurrency

    def kv_blocks(self, choice: Choice) -> int:
        """Blocks of KV that the budget leaves beside everything else (0 where there is none)."""
        return max(0, (self._budget - self._beside(choice).total) // self._format(choice).block_bytes)

    def _choices(self) -> Iterator[Choice]:
        prices, exact_only = self._prices, self._subject.exact_only
        weights, dtypes, policies = ["auto"], ["auto"], [EXACT]
        if prices is not None:
            weights += list(prices.weights)
            dtypes += list(prices.kv_dtypes)
            policies += [] if exact_only else list(prices.policies)
        if self._disk is not None:
            selections = [] if prices is None or exact_only else list(prices.selections)
            policies += [OFFLOAD, *(f"{name}+{OFFLOAD}" for name in selections)]
        least = min(self._demand.concurrency, STEP_TOKENS[-1])
        steps = [size for size in STEP_TOKENS if size >= least and size < 2 * max(self._demand.length, STEP_TOKENS[-1])]
        for quantization, kv_dtype, policy, size in product(weights, dtypes, policies, steps):
            yield Choice(quantization, kv_dtype, policy, size)

    def _limits(self, choice: Choice) -> StepLimits:
        seqs = min(self._demand.concurrency, choice.max_num_batched_tokens)
        return StepLimits(choice.max_num_batched_tokens, seqs, self._longest)

    def _beside(self, choice: Choice) -> Accounts:
        subject = self._subject
        return Accounts(
            runtime=self._machine.runtime_bytes + LATE_CODE_BYTES,
            weights=self._weight_bytes(choice.quantization),
            tokenizer=subject.tokenizer_bytes,
            grammars=grammar_bytes(subject.shape.vocab_size),
            activations=self._step_bytes(choice.quantization, self._limits(choice)),
            staging=STAGING_BYTES,
            server=SERVER_BYTES,
            kv=0,
        )

    def _count_weights(self, quantization: str) -> int:
        return self._subject.shape.weight_bytes(self._subject.dtype, self._quantization(quantization))

    def _count_step(self, quantization: str, limits: StepLimits) -> int:
        return step_bytes(self._subject.shape, self._subject.dtype, self._quantization(quantization), limits)

    def _count_passing(self, quantization: str) -> int:
        """What weights pass through while they are read and packed."""
        shape, found = self._subject.shape, self._quantization(quantization)
        return shape.reading_bytes(self._subject.dtype, found) + shape.packing_bytes(found)

    def _divide(self, choice: Choice) -> _Division:
        return self._divide_far(choice) if choice.offloads else self._divide_near(choice)

    def _divide_far(self, choice: Choice) -> _Division:
        """KV on the disk, a window on it in memory, and a pool as small as the engine may start with."""
        assert self._disk is not None, "choices offload where there is a disk"
        beside, fmt, kept = self._beside(choice), self._format(choice), self._kept(choice)
        window = FarKV.least_window_bytes(fmt, self._longest)
        pool = fmt.blocks_for(min(self._longest, LEAST_POOL_TOKENS)) * fmt.block_bytes
        stream = self._stream(choice, beside, max(pool, kept.note_bytes) + window)
        beside = beside if stream is None else replace(beside, weights=stream.num_bytes)
        loading = self._loading(choice, beside if stream is None else replace(beside, weights=stream.resident_bytes))
        room = self._budget - beside.total - window
        running = min(
            self._demand.concurrency, choice.max_num_batched_tokens,
            self._disk.num_bytes // (kept.peak_blocks * fmt.block_bytes),
            room // kept.note_bytes if kept.note_bytes else self._demand.concurrency,
        )  # fmt: skip
        running = running if room >= pool and loading <= self._budget else 0
        notes = running * kept.note_bytes
        far = FarKV.of(fmt, kept, self._longest, running, self._budget - beside.total - max(pool, notes))
        least = max(loading, beside.total + window + max(pool, kept.note_bytes))
        beside = replace(beside, staging=beside.staging + far.window_bytes)
        return _Division(beside, stream, running, notes, loading, least, far)

    def _divide_near(self, choice: Choice) -> _Division:
        beside, fmt = self._beside(choice), self._format(choice)
        stream = self._stream(choice, beside, fmt.blocks_for(self._longest) * fmt.block_bytes)
        loading = self._loading(choice, beside if stream is None else replace(beside, weights=stream.resident_bytes))
        beside = beside if stream is None else replace(beside, weights=stream.num_bytes)
        held, peak = self._blocks(choice, fmt)
        room = (self._budget - beside.total) // fmt.block_bytes if loading <= self._budget else 0
        running = 0 if room < peak else min(self._demand.concurrency, 1 + (room - peak) // max(held, 1))
        running = min(running, choice.max_num_batched_tokens)
        kv_bytes = (peak + max(running - 1, 0) * held) * fmt.block_bytes
        least = max(loading, beside.total + peak * fmt.block_bytes)
        return _Division(beside, stream, running, kv_bytes, loading, least)

    def _stream(self, choice: Choice, beside: Accounts, kv_bytes: int) -> StreamPlan | None:
        """What stays on disk where the weights do not fit beside a step and so much KV."""
        subject = self._subject
        room = self._budget - (beside.total - beside.weights) - kv_bytes
        if choice.quantization != "auto" or not subject.streams or beside.weights <= room:
            return None
        return self._rooms.plan(max(0, room))

    def _loading(self, choice: Choice, beside: Accounts) -> int:
        """Weights, what they are read into, and what packing takes."""
        return beside.runtime + beside.weights + beside.tokenizer + self._passing_bytes(choice.quantization)

    @cached_property
    def _rooms(self) -> Rooms:
        subject = self._subject
        return Rooms(subject.shape, subject.dtype, self._quantization("auto"))

    def _format(self, choice: Choice) -> KVFormat:
        return self._format_of(choice.kv_cache_dtype)

    def _find_format(self, kv_dtype: str) -> KVFormat:
        return with_dtype(self._subject.shape.kv_format(PAGE_SIZE, self._subject.dtype), kv_dtype)

    def _blocks(self, choice: Choice, fmt: KVFormat) -> tuple[int, int]:
        """Blocks of a sequence while it answers, and at its peak: a prompt is whole until the policy acts."""
        kept = self._kept(choice)
        return kept.held_blocks, kept.peak_blocks

    def _kept(self, choice: Choice) -> Kept:
        return self._kept_of(choice.kv, choice.kv_cache_dtype)

    def _find_kept(self, kv: str, kv_dtype: str) -> Kept:
        return Kept.of(self._policy(kv), self._format_of(kv_dtype), self._demand)

    def _steps(self, choice: Choice, stream: StreamPlan | None = None, far: FarKV | None = None) -> StepModel:
        found = self._step_model(choice.quantization, choice.kv_cache_dtype)
        if far is not None:
            selects, rate = self._kept(choice).selects, self._machine.disk_bytes_per_second
            found = FarSteps(found, far, self._machine.far, rate, selects=selects)
        if stream is None:
            return found
        weights, rate = self._weight_bytes(choice.quantization), self._machine.disk_bytes_per_second
        return Streamed(found, self._subject.shape, stream, weights, rate)

    def _find_steps(self, quantization: str, kv_dtype: str) -> StepModel:
        return step_model(self._subject, quantization, kv_dtype, self._machine)

    def _plan(self, choice: Choice, division: _Division) -> Plan:
        demand, running, middle = self._demand, division.running, self._kept(choice).read_slots
        price = self._prices.policies.get(choice.kv) if self._prices is not None else None
        deciding = 0.0 if price is None else price.deciding
        steps, slower = self._steps(choice, division.stream, division.far), 1 / max(0.05, 1 - deciding)
        tpot = slower * steps.seconds(Work(decodes=running, context=middle, rows=running))
        alone = slower * prompt_seconds(steps, demand.prompt, choice.max_num_batched_tokens)
        ttft = alone
        if running > 1:
            ttft = slower * prompt_seconds(
                steps, demand.prompt, choice.max_num_batched_tokens, decodes=running - 1, context=middle
            )
        seconds = running * alone + max(demand.output - 1, 0) * tpot
        return Plan(
            choice, replace(division.beside, kv=division.kv_bytes), running, ttft, alone, tpot,
            running * demand.output / seconds, self._loss(choice), self._flags(choice, division.far),
            division.loading_bytes, int(steps.read_bytes(running)) if isinstance(steps, Streamed) else 0, division.far,
        )  # fmt: skip

    def _loss(self, choice: Choice) -> float:
        loss = self._prices.loss(choice.quantization, choice.kv_cache_dtype, choice.kv) if self._prices else 0.0
        assert loss is not None, f"{choice} has no price"
        return loss

    def placements(self, disk_bytes: int) -> list[Spill]:
        """For every weight format, how weights and KV would lie over memory and a disk, whatever fits, in blocks as the
        engine has them: all that was asked for at a time, one batch.

        Weights that the engine cannot read from disk at every step stay in memory, and KV lies in one place. Left out:
        formats that do not even fit with the disk, and those that lose more than a faster one.
        """
        found = list[Spill]()
        for choice in self._choices():
            if choice == Choice(choice.quantization, choice.kv_cache_dtype, max_num_batched_tokens=STEP_TOKENS[-1]):
                try:
                    found.append(self._spill(choice, disk_bytes))
                except BudgetError:
                    continue
        kept = list[Spill]()
        for spill in sorted(found, key=lambda spill: (self._loss(spill.choice), spill.seconds)):
            if not kept or spill.seconds < (1 - EPSILON) * kept[-1].seconds:
                kept.append(spill)
        return kept

    def _spill(self, choice: Choice, disk_bytes: int) -> Spill:
        demand, layers, fmt = self._demand, self._subject.shape.num_layers, self._format(choice)
        beside, (held, peak) = self._beside(choice), self._blocks(choice, fmt)
        streams = choice.quantization == "auto" and self._subject.streams
        kv_bytes = (peak + (demand.concurrency - 1) * held) * fmt.block_bytes
        items = [
            Item("weights", beside.weights, piece=beside.weights // layers, parts=layers, farthest=int(streams)),
            Item("kv", kv_bytes, piece=kv_bytes // layers, parts=1),
        ]
        room, rate = self._budget - (beside.total - beside.weights), self._machine.disk_bytes_per_second
        work = Work(decodes=demand.concurrency, context=demand.length, rows=demand.concurrency)
        uses = {"weights": Use(), "kv": Use(write=1 / demand.length)}
        decode = Phase("decode", self._steps(choice).seconds(work), uses)
        placed = place(items, [Tier("host", room), Tier("disk", disk_bytes, rate, rate)], [decode])
        return Spill(choice, placed, {item.name: item.num_bytes for item in items})

    def _flags(self, choice: Choice, far: FarKV | None) -> tuple[str, ...]:
        flags = [
            "--memory", str(self._budget), "--max-model-len", str(self._longest),
            "--max-num-seqs", str(self._limits(choice).max_num_seqs),
            "--max-num-batched-tokens", str(choice.max_num_batched_tokens),
        ]  # fmt: skip
        if far is not None:
            assert self._disk is not None
            flags += ["--kv-offload", str(far.tier_bytes), "--kv-offload-dir", self._disk.folder]
            flags += ["--kv-window", str(far.window_bytes)]
        return (*flags, *choice.flags)

    def _in_time(self, plans: list[Plan]) -> list[Plan]:
        demand = self._demand
        most_ttft, most_tpot = demand.slo_ttft or float("inf"), demand.slo_tpot or float("inf")
        good = [plan for plan in plans if plan.ttft <= most_ttft and plan.tpot <= most_tpot]
        if not good:
            best = min(plans, key=lambda plan: max(plan.ttft / most_ttft, plan.tpot / most_tpot))
            raise BudgetError(
                f"no plan in {format_bytes(self._budget)} keeps the asked times; the nearest ({best.choice}) has its "
                f"first token after {best.ttft:.3g} s and one every {best.tpot:.3g} s; ask for less at a time, or more "
                "memory"
            )
        return good


def prompt_seconds(steps: StepModel, prompt: int, step_tokens: int, *, decodes: int = 0, context: float = 0.0) -> float:
    """Seconds of a prompt's chunks, in steps that ``decodes`` others share."""
    room, total, start = max(1, step_tokens - decodes), 0.0, 0
    while start < prompt:
        chunk = min(room, prompt - start)
        last = start + chunk == prompt
        work = Work(decodes=decodes, context=context, chunk=chunk, start=start, rows=decodes + last)
        total += steps.seconds(work)
        start += chunk
    return total


def front(plans: Iterable[Plan]) -> list[Plan]:
    """Plans that no other beats in loss, speed and memory together; near-equals are one."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.loss, -plan.tokens_per_second, plan.accounts.total)):
        if not any(_beats(other, plan) for other in kept):
            kept.append(plan)
    return kept


def _beats(one: Plan, other: Plan) -> bool:
    """``one`` is as good in everything, or worse by less than what matters."""
    return (
        one.loss <= other.loss
        and one.tokens_per_second >= other.tokens_per_second * (1 - EPSILON)
        and one.accounts.total <= other.accounts.total * (1 + EPSILON)
        and one.running >= other.running
    )
