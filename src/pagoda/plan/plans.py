"""Every way to run a model that fits a budget, and the best of them: quality, tokens a second and bytes.

A plan is a weight format, a way to store KV, a KV policy and a step size. What it takes is the sum that the engine will
lease (`accounts`, `dividing`); how fast it is comes from the machine's rates (`roofline`), or from the model's own
measured steps; what it loses was measured (`prices`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from ..core.errors import BudgetError
from ..core.units import format_bytes
from .accounts import Accounts
from .choice import Choice
from .demand import Demand
from .dividing import Divider, Division
from .far import Disk, FarKV
from .machine import Machine
from .prices import EXACT, OFFLOAD, Prices
from .spill import Spill, spill_of
from .streamed import Streamed
from .subject import Subject
from .work import StepModel, Work

STEP_TOKENS = (2048, 1024, 512, 256, 128)
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
    spool_bytes     of the file that they are packed into once, to be read from; 0: the checkpoint has them so
    far        KV in a lower tier, where it lies there; None: in the pool
    tpot_paces  ``tpot`` while memory is slow and while it is fast, where the machine changes between the two
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
    spool_bytes: int = 0
    far: FarKV | None = None
    tpot_paces: tuple[float, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The most that is leased at any time: while the weights are read, or when everything runs."""
        return max(self.accounts.total, self.loading_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; bytes and seconds."""
        found = asdict(self) | {"accounts": self.accounts.as_dict(), "total_bytes": self.accounts.total}
        found |= {"peak_bytes": self.peak_bytes}
        return found | {"flags": list(self.flags)}


class Planner:
    """All plans of one model on one machine for one demand, inside ``budget_bytes``. ``disk``: what KV may have of one,
    where it does not fit beside the rest.
    """

    def __init__(
        self, subject: Subject, machine: Machine, prices: Prices | None, demand: Demand, budget_bytes: int,
        disk: Disk | None = None,
    ) -> None:  # fmt: skip
        self._subject, self._prices, self._demand, self._budget = subject, prices, demand, budget_bytes
        self._divider = Divider(subject, machine, demand, budget_bytes, disk)

    def plan(self, choice: Choice, pace: float | None = None) -> Plan:
        """That one, at the usual ``pace`` of memory or another. Raises BudgetError where it does not fit."""
        found = self._divider.divide(choice)
        if found.far is not None and self._divider.disk is not None and not found.running:
            tier = self._divider.kept(choice).peak_blocks * found.far.fmt.block_bytes
            if tier > self._divider.disk.num_bytes:
                raise BudgetError(
                    f"{choice}: the KV of one request takes {format_bytes(tier)} of disk, and "
                    f"{format_bytes(self._divider.disk.num_bytes)} were given"
                )
        if not found.running:
            raise BudgetError(
                f"{choice} does not fit into {format_bytes(self._budget)}; the nearest budget that can is "
                f"{-(-found.least_bytes >> 20)}MiB"
            )
        return self._plan(choice, found, pace)

    @property
    def fits(self) -> bool:
        """Whether any plan fits without a slower tier."""
        return any(self._divider.divide(choice).running for choice in self._choices())

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
            found = self._divider.divide(choice)
            smallest = found.least_bytes if smallest is None else min(smallest, found.least_bytes)
            if found.running:
                fitting.append(self._plan(choice, found))
        if not fitting:
            assert smallest is not None
            raise BudgetError(
                f"no plan fits {self._subject.name} with {self._demand.length} tokens into "
                f"{format_bytes(self._budget)}; the nearest budget that can is {-(-smallest >> 20)}MiB"
            )
        return [self._with_paces(plan) for plan in front(self._in_time(fitting))]

    def _with_paces(self, plan: Plan) -> Plan:
        paces = self._divider.machine.read_paces
        return replace(plan, tpot_paces=tuple(self.plan(plan.choice, pace).tpot for pace in paces))

    def placements(self, disk_bytes: int, *, max_loss: float | None = None) -> list[Spill]:
        """How weights and KV would lie over memory and a disk, in every format that is faster than what loses less."""
        choices = [c for c in self._choices() if c.kv == EXACT and c.max_num_batched_tokens == STEP_TOKENS[-1]]
        choices = [choice for choice in choices if max_loss is None or self._loss(choice) <= max_loss]
        found = list[Spill]()
        for choice in sorted(choices, key=self._loss):
            spill = spill_of(self._divider, choice, self._budget, disk_bytes)
            if spill is not None and (not found or spill.seconds < (1 - EPSILON) * found[-1].seconds):
                found.append(spill)
        return found

    def _fits_near(self, choice: Choice) -> bool:
        """Whether all that was asked for lies in memory, weights and KV."""
        found = self._divider.divide(replace(choice, kv=EXACT))
        return found.stream is None and found.running == self._demand.concurrency

    def kv_blocks(self, choice: Choice) -> int:
        """Blocks of KV that the budget leaves beside everything else (0 where there is none)."""
        return max(0, (self._budget - self._divider.beside(choice).total) // self._divider.format(choice).block_bytes)

    def _choices(self) -> Iterator[Choice]:
        prices, longest = self._prices, self._divider.longest
        weights, dtypes, policies = ["auto"], ["auto"], [EXACT]
        if prices is not None:
            weights += [] if self._subject.stored is not None else list(prices.weights)
            dtypes += list(prices.kv_dtypes)
            policies += self._subject.runs(prices.policies, longest)
        if self._divider.disk is not None:
            selections = [] if prices is None else [f"{name}+{OFFLOAD}" for name in prices.selections]
            policies += [OFFLOAD, *self._subject.runs(selections, longest)]
        least = min(self._demand.concurrency, STEP_TOKENS[-1])
        steps = [size for size in STEP_TOKENS if size >= least and size < 2 * max(self._demand.length, STEP_TOKENS[-1])]
        for quantization, kv_dtype, policy, size in product(weights, dtypes, policies, steps):
            yield Choice(quantization, kv_dtype, policy, size)

    def _plan(self, choice: Choice, division: Division, pace: float | None = None) -> Plan:
        demand, running, middle = self._demand, division.running, self._divider.kept(choice).read_slots
        price = self._prices.policies.get(choice.kv) if self._prices is not None else None
        deciding = 0.0 if price is None else price.deciding
        steps, slower = self._divider.steps(choice, division.stream, division.far, pace), 1 / max(0.05, 1 - deciding)
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
            division.loading_bytes, int(steps.read_bytes(running)) if isinstance(steps, Streamed) else 0,
            0 if division.stream is None else self._divider.spool_bytes(choice), division.far,
        )  # fmt: skip

    def _loss(self, choice: Choice) -> float:
        loss = self._prices.loss(choice.quantization, choice.kv_cache_dtype, choice.kv) if self._prices else 0.0
        assert loss is not None, f"{choice} has no price"
        return loss

    def _flags(self, choice: Choice, far: FarKV | None) -> tuple[str, ...]:
        flags = [
            "--memory", str(self._budget), "--max-model-len", str(self._divider.longest),
            "--max-num-seqs", str(self._divider.limits(choice).max_num_seqs),
            "--max-num-batched-tokens", str(choice.max_num_batched_tokens),
        ]  # fmt: skip
        if far is not None:
            assert self._divider.disk is not None
            flags += ["--kv-offload", str(far.tier_bytes), "--kv-offload-dir", self._divider.disk.folder]
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
