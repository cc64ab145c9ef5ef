"""Iteration-level scheduling with chunked prefill (Orca, OSDI 2022, section 3; Sarathi-Serve, OSDI 2024, section 4).

A step has a budget of tokens. Every running decode takes one first, so that no prompt, however long, delays a stream
that has begun; running prompts then go on in chunks, and new sequences are let in with what is left. *Which* sequence
comes next is the policy's answer, *whether it fits* the memory's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.clock import Clock
from ..core.errors import ConfigError
from .item import Item, Memory, Plan, Scheduled
from .policies.base import Room, SchedulingPolicy
from .queue import WaitingQueue

MOST_LOOKS = 8
"""Heads of the queue that are looked at again before one is admitted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_num_batched_tokens`` per step, ``max_num_seqs`` running at once. Every decode must have its token."""

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 64

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ConfigError(f"max_num_seqs is {self.max_num_seqs}; it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs ({self.max_num_seqs}): "
                "a decode would stall; raise the first or lower the second"
            )


class Scheduler:
    def __init__(self, limits: Limits, policy: SchedulingPolicy, memory: Memory, clock: Clock) -> None:
        self.limits, self._memory, self._clock = limits, memory, clock
        self.running: dict[int, Item] = {}
        self.use(policy)
        self._parked: dict[int, Item] = {}  # preempted with nothing to compute: they wait for ``wake``, not for pages
        self._held: dict[int, str] = {}  # the policy's reason to hold the head back, by sequence
        self.num_preemptions = 0

    def use(self, policy: SchedulingPolicy) -> None:
        """From now on this policy decides. Nobody may be here: what a policy knows of a request begins at arrival."""
        assert not self.running, "sequences are running"
        self.policy, self.waiting = policy, WaitingQueue(policy)
        self._takes_places = type(policy).may_preempt is not SchedulingPolicy.may_preempt
        policy.bind(self._memory.cached_tokens)

    def add(self, item: Item) -> None:
        """A new sequence waits to be admitted."""
        self.policy.arrived(item)
        self.waiting.add(item)

    def add_running(self, item: Item) -> bool:
        """A fork of a running sequence, pages already shared, runs at once; False when all seats are taken."""
        if len(self.running) >= self.limits.max_num_seqs:
            return False
        self.policy.arrived(item)
        self.running[item.seq_id] = item
        self.policy.admitted(item, item.num_computed)
        return True

    def remove(self, item: Item, completed: bool = True) -> None:
        """The sequence ended (``completed``) or was aborted or failed; its pages go back if it held any."""
        if item.seq_id in self.running:
            del self.running[item.seq_id]
            self._memory.release(item)
        elif self._parked.pop(item.seq_id, None) is None and not self.waiting.remove(item):
            return
        self.policy.left(item, completed)

    def ended(self, plan: Plan, seconds: float) -> None:
        """The planned step ran and took ``seconds``: what policies learn from."""
        if plan.scheduled:
            self.policy.ran(plan.scheduled, seconds)

    def is_running(self, item: Item) -> bool:
        """Whether the item holds a seat and pages."""
        return item.seq_id in self.running

    def wake(self, item: Item) -> None:
        """The item has a new token to compute; needed where it was complete (a beam) and may have lost its pages."""
        if self._parked.pop(item.seq_id, None) is not None:
            self.waiting.add(item)

    def preempt(self, item: Item, unsampled: bool = False) -> None:
        """A running sequence gives its pages up and waits again (for those who find out after planning). ``unsampled``:
        in the midst of a step, so that all its tokens are computed but what follows them is not known.
        """
        self._preempt(item, Plan(), unsampled)

    def schedule(self) -> Plan:
        """Choose the next step. An empty plan means that nothing can run."""
        plan = Plan()
        self._held.clear()
        for item in self.policy.moved():
            self.waiting.refile(item)
        decodes, prompts = self._by_need()
        limit = self.limits.max_num_batched_tokens
        budget = min(limit, max(self.policy.token_budget(len(decodes), limit), len(decodes), 1))
        if self.policy.prefill_first():
            self._prompts_alone(plan, budget, prompts)
        if not plan.scheduled:
            budget = self._continue(plan, budget, decodes, prompts)
            if not plan.preempted:
                self._admit_waiting(plan, budget)
        if not plan.scheduled and self.waiting:
            self._make_room(plan)
        return plan

    def why_waiting(self, item: Item) -> str:
        """One phrase for people: the policy's reason, and whether bytes are what is missing."""
        ahead = self.waiting.position(item)
        if ahead is None:
            return "it is running"
        if ahead == 0:
            full = len(self.running) >= self.limits.max_num_seqs
            if full:
                return f"all {self.limits.max_num_seqs} seats are taken"
            return self._held.get(item.seq_id, "its KV does not fit yet")
        return self.policy.explain(item, ahead)

    # -- one step ------------------------------------------------------------------------------------------------

    def _by_need(self) -> tuple[list[Item], list[Item]]:
        """Running items with one token to compute, and those with more, the first in rank first.

        Every decode has its token whatever its rank, so they are not ranked: ranking 64 takes half of the time that
        a step is planned in.
        """
        decodes, prompts = [], []
        for item in self.running.values():
            pending = item.num_tokens - item.num_computed
            if pending == 1:
                decodes.append(item)
            elif pending > 1:
                prompts.append(item)
        if len(prompts) > 1:
            prompts.sort(key=self.policy.rank)
        return decodes, prompts

    def _prompts_alone(self, plan: Plan, budget: int, prompts: list[Item]) -> None:
        """Prompts under way, then new ones; running decodes get nothing in a step that has a prompt."""
        budget = self._continue(plan, budget, [], prompts)
        if not plan.preempted:
            self._admit_waiting(plan, budget)

    def _continue(self, plan: Plan, budget: int, decodes: list[Item], prompts: list[Item]) -> int:
        """Running items in this order, all running ones as victims; returns the tokens left, of which there is one for
        every decode.

        Who loses its pages does not depend on the order: the fewest of the last in rank, so that the others fit.
        """
        reserve, preempted, taken = self._memory.reserve, plan.preempted, plan.scheduled
        assert not taken
        for item in decodes:
            if preempted and item.seq_id not in self.running:
                continue
            if not reserve(item, 1) and not self._preempt_until(item, 1, plan)[0]:
                continue
            taken.append(Scheduled(item, item.num_computed, 1))
        budget -= len(taken)
        for item in prompts:
            start = item.num_computed
            num_tokens = min(item.num_tokens, item.chunk_end, start + budget) - start
            if num_tokens == 0 or item.seq_id not in self.running:
                continue
            if not reserve(item, num_tokens):
                granted, returned = self._preempt_until(item, num_tokens, plan)
                budget += returned
                if not granted:
                    continue
            taken.append(Scheduled(item, start, num_tokens))
            budget -= num_tokens
        return budget

    def _preempt_until(self, item: Item, num_tokens: int, plan: Plan) -> tuple[bool, int]:
        """Takes the pages of the last-ranked sequences until the item's tokens fit.

        Returns whether they do (False if the item itself was the last) and the step tokens that the victims had.
        """
        returned = 0
        while True:
            victim = max(self.running.values(), key=self.policy.rank)
            self._preempt(victim, plan)
            for place, scheduled in enumerate(plan.scheduled):
                if scheduled.item is victim:
                    returned += plan.scheduled.pop(place).num_tokens
                    break
            if victim is item:
                plan.starved.append(item)
                return False, returned
            if self._memory.reserve(item, num_tokens):
                return True, returned

    def _admit_waiting(self, plan: Plan, budget: int) -> None:
        while budget > 0 and self.waiting:
            full = len(self.running) >= self.limits.max_num_seqs
            if full and not self._takes_places:
                break
            item = self.waiting.head() if full else self._head()
            if self._holds(item):
                break
            if not full:
                num_tokens = self._try_admit(item, budget, plan)
                if num_tokens:
                    budget -= num_tokens
                    continue
            if not self._preempt_for(item, plan):
                break

    def _head(self) -> Item:
        """The first in rank, once the policy has looked at it again; a few of those that were first go back at most."""
        item = self.waiting.head()
        for _ in range(MOST_LOOKS):
            if not self.policy.is_stale(item):
                break
            self.waiting.refile(item)
            item = self.waiting.head()
        return item

    def _holds(self, item: Item) -> bool:
        """Whether the policy keeps the first in rank back. An idle machine starts whatever there is."""
        if not self.running:
            return False
        capacity, now = self._memory.capacity_tokens(item), self._clock.now()
        reason = self.policy.hold(item, Room(self.running.values(), len(self.waiting), capacity, now))
        if reason:
            self._held[item.seq_id] = reason
        return bool(reason)

    def _try_admit(self, item: Item, budget: int, plan: Plan) -> int:
        """Open a table, share what is cached, reserve the first chunk; returns its tokens, 0 if it does not fit.

        Where others run, all known tokens must fit, not just the chunk: a prompt that is let in half would only be
        thrown out again.
        """
        cached = self._memory.admit(item)
        num_tokens = min(self._pending(item), budget)
        fits = not self.running or self._memory.fits(item, self.policy.num_growing(len(self.running)))
        if not fits or not self._memory.reserve(item, num_tokens):
            self._memory.release(item)
            return 0
        self.waiting.remove(item)
        self.running[item.seq_id] = item
        self.policy.admitted(item, cached)
        plan.admitted.append((item, cached))
        plan.scheduled.append(Scheduled(item, cached, num_tokens))
        return num_tokens

    def _preempt_for(self, item: Item, plan: Plan) -> bool:
        """Take the place of the last-ranked sequence that the policy lets ``item`` preempt; False if there is none."""
        below = [running for running in self.running.values() if self.policy.may_preempt(item, running)]
        if not below:
            return False
        victim = max(below, key=self.policy.rank)
        self._preempt(victim, plan)
        plan.scheduled = [s for s in plan.scheduled if s.item is not victim]
        return True

    def _make_room(self, plan: Plan) -> None:
        """Nothing runs but something waits: idle holders of pages (beams waiting for a sibling) give way."""
        if self.running:
            self._preempt(max(self.running.values(), key=self.policy.rank), plan)

    def _preempt(self, victim: Item, plan: Plan, unsampled: bool = False) -> None:
        idle = victim.num_computed == victim.num_tokens and not unsampled
        del self.running[victim.seq_id]
        self._memory.release(victim)
        plan.preempted.append(victim)
        self.num_preemptions += 1
        self.policy.preempted(victim)
        if idle:
            self._parked[victim.seq_id] = victim
        else:
            self.waiting.add(victim)

    @staticmethod
    def _pending(item: Item) -> int:
        return min(item.num_tokens, item.chunk_end) - item.num_computed
