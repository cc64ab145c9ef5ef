"""How a budget is divided for one way of running a model: what the engine would lease, how many requests fit beside it,
and what lies on a disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from ..budget.reconcile import LATE_CODE_BYTES
from ..core.errors import BudgetError
from ..core.types import DTYPE_BYTES, KVFormat
from ..kv.codecs.base import with_dtype
from ..kv.policies._layers import blocks_of
from ..models.stream_plan import StreamPlan
from ..sampling.scratch import grammar_bytes
from ..weights.rows import OnDisk
from .accounts import SERVER_BYTES, STAGING_BYTES, Accounts, StepLimits, step_bytes
from .choice import PAGE_SIZE, Choice, longest_of
from .demand import Demand
from .far import Disk, FarKV, FarSteps
from .kept import Kept
from .machine import Machine
from .steps import step_model
from .streamed import Rooms, Streamed
from .subject import Subject
from .work import StepModel

LEAST_POOL_TOKENS = 16 * PAGE_SIZE
"""Of the pool of an engine whose KV lies in a lower tier (`engine.sizing`)."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a choice divides the budget. ``least_bytes``: the least budget for one request."""

    beside: Accounts
    stream: StreamPlan | None
    running: int
    kv_bytes: int
    loading_bytes: int
    least_bytes: int
    far: FarKV | None = None


class Divider:
    """For one model on one machine, one demand and one budget; ``disk``: what KV may have of one.

    Raises BudgetError where positions end before the asked sequences do.
    """

    def __init__(
        self, subject: Subject, machine: Machine, demand: Demand, budget_bytes: int, disk: Disk | None
    ) -> None:
        self.subject, self.machine, self.demand, self.disk = subject, machine, demand, disk
        self._budget = budget_bytes
        self.longest = longest_of(demand)
        if self.longest > subject.shape.max_position:
            raise BudgetError(
                f"prompt and answer together have {demand.length} tokens, but positions of {subject.name} end at "
                f"{subject.shape.max_position}; ask for fewer"
            )
        # A thousand choices share a few formats, policies and step sizes; each is looked at once.
        self._quantization = cache(subject.quantization)
        self._kept_of, self._format_of = cache(self._find_kept), cache(self._find_format)
        self._weight_bytes, self._passing_bytes = cache(self._count_weights), cache(self._count_passing)
        self._step_bytes, self._step_model = cache(self._count_step), cache(self._find_steps)
        self._rooms, self._largest_bytes = cache(self._find_rooms), cache(self._count_largest)
        self._panels = cache(self._find_panels)

    def limits(self, choice: Choice) -> StepLimits:
        """Of the largest step."""
        seqs = min(self.demand.concurrency, choice.max_num_batched_tokens)
        return StepLimits(choice.max_num_batched_tokens, seqs, self.longest)

    def beside(self, choice: Choice) -> Accounts:
        """All accounts but KV, with every weight in memory."""
        subject = self.subject
        return Accounts(
            runtime=self.machine.runtime_bytes + LATE_CODE_BYTES,
            weights=self._weight_bytes(choice.quantization),
            tokenizer=subject.tokenizer_bytes,
            grammars=grammar_bytes(subject.shape.vocab_size),
            activations=self._step_bytes(choice.quantization, self.limits(choice)),
            staging=STAGING_BYTES,
            server=SERVER_BYTES,
            kv=0,
        )

    def _count_weights(self, quantization: str) -> int:
        return self.subject.shape.weight_bytes(self.subject.dtype, self._quantization(quantization))

    def _count_step(self, quantization: str, limits: StepLimits) -> int:
        return step_bytes(self.subject.shape, self.subject.dtype, self._quantization(quantization), limits)

    def _count_passing(self, quantization: str) -> int:
        """What weights pass through while they are read and packed."""
        shape, found = self.subject.shape, self._quantization(quantization)
        ready = self.subject.stored is not None and quantization == "auto"
        return shape.reading_bytes(self.subject.dtype, found) + shape.packing_bytes(found, ready=ready)

    def divide(self, choice: Choice) -> Division:
        """Weights that do not fit are left on disk where the engine can read them at every step."""
        return self._far(choice) if choice.offloads else self._near(choice)

    def _far(self, choice: Choice) -> Division:
        """KV on the disk, a window on it in memory, and a pool as small as the engine may start with."""
        assert self.disk is not None, "choices offload where there is a disk"
        beside, fmt, kept = self.beside(choice), self.format(choice), self.kept(choice)
        window = FarKV.least_window_bytes(fmt, self.longest)
        pool = fmt.blocks_for(min(self.longest, LEAST_POOL_TOKENS)) * fmt.block_bytes
        stream = self._stream(choice, beside, max(pool, kept.note_bytes) + window)
        beside = beside if stream is None else replace(beside, weights=stream.num_bytes)
        loading = self._loading(choice, beside, stream)
        room = self._budget - beside.total - window
        running = min(
            self.demand.concurrency, choice.max_num_batched_tokens,
            self.disk.num_bytes // (kept.peak_blocks * fmt.block_bytes),
            room // kept.note_bytes if kept.note_bytes else self.demand.concurrency,
        )  # fmt: skip
        running = running if room >= pool and loading <= self._budget else 0
        notes = running * kept.note_bytes
        most = self._budget - beside.total - max(pool, notes)
        far = FarKV.of(fmt, kept, self.longest, running, most, self.demand.output)
        least = max(loading, beside.total + window + max(pool, kept.note_bytes))
        beside = replace(beside, staging=beside.staging + far.window_bytes)
        return Division(beside, stream, running, notes, loading, least, far)

    def _near(self, choice: Choice) -> Division:
        beside, fmt = self.beside(choice), self.format(choice)
        reach = self.subject.distances.reach(self.longest)
        most = blocks_of(self.longest, fmt, reach, choice.max_num_batched_tokens) * fmt.block_bytes
        stream = self._stream(choice, beside, most)
        loading = self._loading(choice, beside, stream)
        beside = beside if stream is None else replace(beside, weights=stream.num_bytes)
        kept = self.kept(choice)
        held, peak = kept.held_blocks, kept.peak_blocks
        room = (self._budget - beside.total) // fmt.block_bytes if loading <= self._budget else 0
        running = 0 if room < peak else min(self.demand.concurrency, 1 + (room - peak) // max(held, 1))
        running = min(running, choice.max_num_batched_tokens)
        kv_bytes = (peak + max(running - 1, 0) * held) * fmt.block_bytes
        least = max(loading, beside.total + peak * fmt.block_bytes)
        return Division(beside, stream, running, kv_bytes, loading, least)

    def _stream(self, choice: Choice, beside: Accounts, kv_bytes: int) -> StreamPlan | None:
        """What stays on disk where the weights do not fit beside a step and so much KV."""
        room = self._budget - (beside.total - beside.weights) - kv_bytes
        if not self.subject.streams or beside.weights <= room:
            return None
        return self._rooms(choice.quantization).plan(max(0, room))

    def streams(self, choice: Choice) -> bool:
        """Whether weights of that format can be read at every step."""
        return self.subject.streams and self._rooms(choice.quantization).plan(0) is not None

    def spool_bytes(self, choice: Choice) -> int:
        """Of the file that weights are packed into before they are streamed; 0 where the checkpoint has them so."""
        subject = self.subject
        if not self._packs_first(choice.quantization):
            return 0
        packing = self._quantization(choice.quantization)
        formats = ((m, f, n) for m in subject.shape.matrices for f, n in packing.each(m.name, m.role, m.count).items())
        whole = subject.shape.weight_bytes(subject.dtype, packing)
        return whole + sum(
            n * (f.stored_bytes(m.rows, m.cols) - f.num_bytes(m.rows, m.cols)) for m, f, n in formats if f is not None
        )

    def _packs_first(self, quantization: str) -> bool:
        """Whether weights are packed into a file before they are streamed."""
        return (quantization != "auto" or self.subject.rearranged) and not self._panels(quantization)

    def _loading(self, choice: Choice, beside: Accounts, stream: StreamPlan | None) -> int:
        """Weights, what they are read into, and what packing takes; for a file that is packed before, one matrix."""
        weights = beside.weights if stream is None else stream.resident_bytes
        if stream is not None and self._packs_first(choice.quantization):
            weights = max(weights, self._largest_bytes(choice.quantization))
        return beside.runtime + weights + beside.tokenizer + self._passing_bytes(choice.quantization)

    def _count_largest(self, quantization: str) -> int:
        """Of a matrix as it is stored, or of one in the model's dtype."""
        packing, size = self._quantization(quantization), DTYPE_BYTES[self.subject.dtype]
        formats = ((m, packing.each(m.name, m.role, m.count)) for m in self.subject.shape.matrices)
        return max(
            m.rows * m.cols * size if f is None else f.stored_bytes(m.rows, m.cols)
            for m, found in formats
            for f in found
        )

    def _find_rooms(self, quantization: str) -> Rooms:
        subject = self.subject
        stored, found = ("", None) if self._packs_first(quantization) else (subject.stored_dtype, subject.on_disk)
        packed = self._panels(quantization)
        return Rooms(
            subject.shape, subject.dtype, self._quantization(quantization), stored or subject.dtype, found, packed
        )

    def _find_panels(self, quantization: str) -> Mapping[str, OnDisk]:
        return self.subject.packed(self._quantization(quantization))

    def format(self, choice: Choice) -> KVFormat:
        """Of the pages."""
        return self._format_of(choice.kv_cache_dtype)

    def _find_format(self, kv_dtype: str) -> KVFormat:
        return with_dtype(self.subject.shape.kv_format(PAGE_SIZE, self.subject.dtype), kv_dtype)

    def kept(self, choice: Choice) -> Kept:
        """KV of a sequence under the choice's policy."""
        return self._kept_of(choice.kv, choice.kv_cache_dtype, choice.max_num_batched_tokens)

    def _find_kept(self, kv: str, kv_dtype: str, step: int) -> Kept:
        return Kept.of(self.subject.policy(kv, self.longest), self._format_of(kv_dtype), self.demand, step)

    def steps(
        self, choice: Choice, stream: StreamPlan | None = None, far: FarKV | None = None, pace: float | None = None
    ) -> StepModel:
        """Times of its steps, with weights and KV on a disk as a division says. ``pace`` as in `step_model`."""
        found = self._step_model(choice.quantization, choice.kv_cache_dtype, pace)
        if far is not None:
            found = FarSteps(found, far, self.machine.far, selects=self.kept(choice).selects)
        if stream is None:
            return found
        rate = self.machine.disk_bytes_per_second
        return Streamed(found, self.subject.shape, stream, rate, shares_disk=far is not None)

    def _find_steps(self, quantization: str, kv_dtype: str, pace: float | None) -> StepModel:
        return step_model(self.subject, quantization, kv_dtype, self.machine, pace)
