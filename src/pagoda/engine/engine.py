"""The step loop: plan, run, commit, act, sample. One engine is one model in one budget; it is not thread-safe."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from functools import partial
from typing import NoReturn

import torch

from ..core.clock import Clock
from ..core.errors import PagodaError, RequestError
from ..core.events import EventBus
from ..core.types import FinishReason, Granularity
from ..core.units import format_bytes
from ..kv.manager import KVManager
from ..kv.persist import Persistence
from ..kv.storage import PageStorage
from ..kv.stores import Stores
from ..models.load import Loaded
from ..sampling.finish import FinishRule
from ..sampling.state import SampleState, end_ids
from ..schedule.item import Plan
from ..schedule.policies.base import SchedulingPolicy
from ..schedule.scheduler import Limits, Scheduler
from .admission import Admission
from .advance import Advance
from .beams import BeamGroup
from .calibrations import Calibrations
from .counters import Counters, StepEnded
from .eviction import Evictor
from .memory import PagedMemory
from .outputs import RequestOutput
from .probing import Probing
from .report import output_of
from .request import Request
from .runner import Runner
from .sequence import RequestState, Sequence
from .shadow import PREFIX, Shadows
from .text import TextStream

_log = logging.getLogger(__name__)


class Engine:
    """Requests in, outputs out, one ``step`` at a time."""

    def __init__(
        self,
        loaded: Loaded,
        stores: Stores,
        *,
        limits: Limits,
        policy: SchedulingPolicy,
        max_model_len: int,
        clock: Clock,
        use_prefix: bool = True,
        granularity: Granularity | None = None,
        audit_steps: bool = False,
        shadows: Shadows | None = None,
        persistence: Persistence | None = None,
    ) -> None:
        self.loaded, self.stores, self.clock = loaded, stores, clock
        self.persistence, self._tokens_per_second = persistence, 0.0
        self.events, self.counters = EventBus(), Counters()
        self._granularity, self._audit_steps = granularity, audit_steps
        self._memory = PagedMemory(
            use_prefix=use_prefix,
            persistence=persistence,
            running=lambda: self.scheduler.running.values(),
            load=lambda sequence: self.admission.why_not_loaded(sequence.group.request) is None,
            step_tokens=limits.max_num_batched_tokens,
        )
        self.scheduler = Scheduler(limits, policy, self._memory, clock)
        self._runner, self._probing = Runner(loaded.model, stores), Probing(self.scheduler)
        calibrations = Calibrations(loaded.path, stores.hold_shared, stores.could_hold, loaded.shape.num_layers)
        self._evictor = Evictor(self.scheduler, self.counters, calibrations)
        self.admission = Admission(loaded, stores, calibrations, max_model_len, limits.max_num_batched_tokens)
        stores.calibration, stores.shared.forget = calibrations.load, calibrations.forget
        self._advance = Advance(self.scheduler, self._runner, loaded.tokenizer, clock, self._new_sequence)
        self.shadows = shadows or Shadows(0.0)
        self._requests: dict[str, RequestState] = {}
        self._seq_ids = itertools.count(1)

    @property
    def manager(self) -> KVManager:
        """The pages of the engine's own KV format."""
        return self.stores.default.manager

    @property
    def storage(self) -> PageStorage:
        """Their bytes."""
        return self.stores.default.storage

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence."""
        return self.admission.max_model_len

    # -- requests ----------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Accept a request, or raise RequestError saying why it can never run here."""
        if request.request_id in self._requests:
            raise RequestError(f"request id {request.request_id!r} is already running; choose another")
        try:
            self._accept(request)
        except Exception as error:
            self._refuse(request, error)
        self._stop_shadow()
        self.shadows.watch(request)
        self.counters.requests_accepted += 1

    def _accept(self, request: Request) -> None:
        self.admission.check(request)
        store = self.stores.of(request.policy.codec, offload=request.policy.offload)
        group = RequestState(request, store)
        group.learn = partial(self.admission.learned, request)
        eos_ids = self.loaded.eos_ids
        room = self.admission.room_for(request, store)
        group.rule = FinishRule(request.params, eos_ids, prompt_len=0, max_model_len=room)
        if request.params.beam_width is not None:
            group.beam = BeamGroup(group, self._advance, end_ids(request.params, eos_ids))
        self._requests[request.request_id] = group
        sequence = self._new_sequence(group, 0)
        self._memory.prefetch(sequence, self._tokens_per_second)
        self.scheduler.add(sequence)

    def _refuse(self, request: Request, error: Exception) -> NoReturn:
        """Nothing is left of a request that was not accepted. A policy that raises anything when it is first asked
        refuses its own request, whoever runs the engine.
        """
        group = self._requests.pop(request.request_id, None)
        for sequence in group.sequences if group is not None else []:
            self._memory.forget(sequence)
        if isinstance(error, PagodaError) or request.policy.exact:
            raise error
        spelled = request.policy.spelled
        _log.error("kv=%s broke when a request came in", spelled, exc_info=error)
        raise RequestError(f"kv={spelled!r} failed, when the request came in: {type(error).__name__}: {error}")

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now; its pages are free for the next step. None if it is not running any more."""
        group = self._requests.get(request_id)
        if group is None:
            return None
        for sequence in group.live:
            self._advance.end(sequence, FinishReason.ABORT)
        self._hold_state()
        return self._finish(group)

    @property
    def num_masks(self) -> int:
        """Masks that were computed for structured output, ahead of their step."""
        return self._advance.num_masks

    @property
    def has_work(self) -> bool:
        return bool(self._requests) or self.shadows.has_pending

    def close(self) -> None:
        """Requests still running are aborted; every page goes back to the system."""
        self._stop_shadow()
        for request_id in list(self._requests):
            self.abort(request_id)
        self._advance.close()
        if self.persistence is not None:
            self.persistence.close()
        self.stores.close()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Run one step and say what changed: every streaming request that got tokens, and every one that ended.

        Who reads an output's text makes it first (``RequestOutput.tell``), in a thread that is not in a hurry.
        """
        started = self.clock.now()
        if not self._requests and self.shadows.has_pending:
            self._start_shadow(started)
        plan = self.scheduler.schedule()
        self._note(plan, started)
        touched = self._run(plan) if plan.scheduled else self._unstick(plan)
        if self._audit_steps:
            self.stores.audit()
        touched += [group for group in self._hold_state() if group not in touched]
        outputs = self._collect(touched)
        self.write_back()
        seconds = self.clock.now() - started
        self.scheduler.ended(plan, seconds)
        self._publish(plan, seconds)
        return outputs

    @property
    def has_unwritten(self) -> bool:
        """Whether ``write_back`` has something to do."""
        return self.persistence is not None and self.persistence.has_unwritten

    def write_back(self) -> None:
        """Some of the KV that is not on disk yet goes there, behind the next steps' backs."""
        if self.persistence is not None:
            self.persistence.flush()

    def _run(self, plan: Plan) -> list[RequestState]:
        groups = _groups(plan)
        try:
            if self._runner.is_one_call(plan) and not self.scheduler.policy.wants_hidden:
                self._run_step(plan)
            else:
                with torch.inference_mode():
                    self._run_step(plan)
        except Exception as error:  # whatever broke this step must not take the server or the waiting requests along
            _log.exception("a step of %d sequences failed", len(plan.scheduled))
            for group in groups:
                self._advance.fail(group, f"the step failed: {type(error).__name__}: {error}")
        return groups

    def _run_step(self, plan: Plan) -> None:
        self._advance.prepare(plan)
        result = self._runner.run(plan, self.scheduler.policy.wants_hidden)
        self._advance.lose(result)
        self._probing.see(result)
        self._advance.commit(result.pieces)
        for sequence in self._evictor.apply(result):
            self._advance.fail(sequence.group, sequence.broken)
        self._advance.sample(result)

    def _unstick(self, plan: Plan) -> list[RequestState]:
        """Nothing could run. Unless somebody was preempted to change that, a sequence can never run: say so."""
        sequence = self._stuck(plan)
        if sequence is None:
            return []
        manager = sequence.store.manager
        step = self.scheduler.limits.max_num_batched_tokens
        needed = manager.blocks_needed(sequence.peak_slots(step)) * manager.fmt.block_bytes
        beside = f" beside what kv={'+'.join(sequence.policy.names)!r} remembers" if sequence.policy.remembers else ""
        calibrated = sum(map(self.stores.shared.size, sequence.policy.reads))
        beside += f" and was calibrated to ({format_bytes(calibrated)})" if calibrated else ""
        left = format_bytes(manager.available_blocks() * manager.fmt.block_bytes)
        pinned = f"pinned prefixes leave {left}; unpin some or raise the budget"
        rest = pinned if manager.has_pins else f"the budget leaves {left}; raise it"
        no_room = f"{sequence.num_tokens} tokens need {format_bytes(needed)} of KV{beside}, and {rest}"
        unread = self.admission.why_not_loaded(sequence.group.request)
        self._advance.fail(sequence.group, unread or no_room, no_room=not unread and not manager.has_pins)
        return [sequence.group]

    def _stuck(self, plan: Plan) -> Sequence | None:
        """The head of the queue where nobody runs, or the sequence that ran alone and found no page: it would find none
        again. Whoever made room for another may not have made enough: what it remembered is given back after the step.
        """
        if self.scheduler.running or not self.scheduler.waiting:
            return None
        stuck = plan.starved if plan.preempted else [self.scheduler.waiting.head()]
        if len(plan.preempted) > 1 or not stuck:
            return None
        assert isinstance(stuck[0], Sequence)
        return stuck[0]

    def _hold_state(self) -> list[RequestState]:
        """Leases what policies remember of the running sequences; where that does not fit, the last in rank gives way.

        A step may exceed the lease by what its own states grew, which the staging lease covers. Returns requests that
        failed: those whose state does not fit even alone.
        """
        everybody: Iterable[Sequence] = self.scheduler.running.values()  # type: ignore[assignment]
        running = [sequence for sequence in everybody if not sequence.plain and sequence.policy.remembers]
        if not running and not self.stores.state_bytes:
            return []
        ranked, failed = sorted(running, key=self.scheduler.policy.rank), []
        while not self.stores.hold_state(needed := sum(s.policy_state.num_bytes for s in ranked)):
            victim = ranked.pop()
            if len(self.scheduler.running) > 1:
                self.scheduler.preempt(victim)
                continue
            self._advance.fail(
                victim.group,
                f"what kv={'+'.join(victim.policy.names)!r} remembers of {victim.num_tokens} tokens takes "
                f"{format_bytes(needed)} beside its pages, and that is not there; raise the budget or ask for less",
                no_room=True,
            )
            failed.append(victim.group)
        return failed

    def preempt_last(self) -> bool:
        """The running sequence that is last in rank gives its pages up and waits; False if none is running."""
        running = self.scheduler.running.values()
        if not running:
            return False
        self.scheduler.preempt(max(running, key=self.scheduler.policy.rank))
        return True

    def _note(self, plan: Plan, now: float) -> None:
        for item, cached in plan.admitted:
            assert isinstance(item, Sequence)
            if item.group.timing.first_scheduled is None:
                item.group.timing.first_scheduled = now
                item.group.cached_tokens = min(cached, item.prompt_len)
                self.counters.prompt_tokens += item.prompt_len
        for item in plan.preempted:
            assert isinstance(item, Sequence)
            item.group.num_preemptions += 1
            self._memory.prefetch(item, self._tokens_per_second, whole=True)
        if self.persistence is not None and self.scheduler.waiting:
            self._memory.prefetch_next(self.scheduler.waiting.head(), self._tokens_per_second)

    def _collect(self, groups: list[RequestState]) -> list[RequestOutput]:
        outputs = []
        for group in groups:
            if group.sequences and not group.live:
                output = self._finish(group)
                outputs += [] if _is_shadow(group) else [output]
            elif group.request.stream and group.timing.first_token is not None:
                outputs.append(output_of(group, self.loaded.tokenizer))
        return outputs

    def _finish(self, group: RequestState) -> RequestOutput:
        group.finished = True
        group.timing.finished = self.clock.now()
        del self._requests[group.request.request_id]
        for sequence in group.sequences:
            self._memory.forget(sequence)
        self.stores.tidy()
        if _is_shadow(group):
            self.shadows.settle(ok=group.error is None)
        else:
            self.counters.requests_finished += 1
            self.counters.requests_failed += group.error is not None
            ended_well = group.sequences[0].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
            self.shadows.ended(group.request.request_id, group.sequences[0].output_ids, ok=ended_well)
        return output_of(group, self.loaded.tokenizer)

    def _start_shadow(self, now: float) -> None:
        try:
            self._accept(self.shadows.next(now))
        except RequestError as error:  # what fits compressed need not fit exactly
            _log.info("no exact twin: %s", error)
            self.shadows.settle(ok=False)

    def _stop_shadow(self) -> None:
        """A shadow that runs makes room for whom it was not to disturb."""
        request_id = self.shadows.give_way()
        if request_id is not None:
            self.abort(request_id)

    def _publish(self, plan: Plan, seconds: float) -> None:
        self.counters.steps += 1
        self.counters.step_seconds += seconds
        self.counters.tokens_computed += plan.num_tokens
        if plan.num_tokens >= 64 and seconds > 0:  # prompts: what a recomputation would run at
            rate = plan.num_tokens / seconds
            self._tokens_per_second = 0.8 * (self._tokens_per_second or rate) + 0.2 * rate
        self.counters.tokens_sampled = self._advance.num_tokens
        gaps = self._advance.take_gaps()
        if self.events.wants(StepEnded):
            waiting, running = len(self.scheduler.waiting), len(self.scheduler.running)
            self.events.publish(
                StepEnded(plan.num_tokens, len(plan.scheduled), len(plan.preempted), waiting, running, seconds, gaps)
            )

    # -- sequences ---------------------------------------------------------------------------------------------------

    def _new_sequence(self, group: RequestState, index: int) -> Sequence:
        request = group.request
        granularity = request.policy.granularity
        if request.policy.eviction is None and not request.policy.offload and self._granularity is not None:
            granularity = self._granularity
        sequence = Sequence(next(self._seq_ids), group, index, granularity)
        sequence.sample_state = SampleState(
            request.params,
            request.prompt_ids,
            seed=request.seed,
            index=index,
            eos_ids=self.loaded.eos_ids,
            grammar=request.grammar,
        )
        sequence.text = TextStream.of(self.loaded.tokenizer, request.params)
        group.sequences.append(sequence)
        return sequence


def _groups(plan: Plan) -> list[RequestState]:
    """The requests of a step, each once. (A dict of 32 takes a malloc or two of every step.)"""
    groups: list[RequestState] = []
    for scheduled in plan.scheduled:
        group: RequestState = scheduled.item.group  # type: ignore[attr-defined]
        if len(group.sequences) == 1 or group not in groups:
            groups.append(group)
    return groups


def _is_shadow(group: RequestState) -> bool:
    return group.request.request_id.startswith(PREFIX)
