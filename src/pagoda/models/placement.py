"""Where a model's weights go while it is loaded: all into memory, or some left on disk, to be read at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pagoda.budget.ledger import Lease, Need
from pagoda.core.errors import BudgetError, ConfigError, choices
from pagoda.weights.expert_cache import ExpertCache
from pagoda.weights.expert_policies import POLICIES as CACHE_POLICIES
from pagoda.weights.neurons import NeuronCache
from pagoda.weights.quantization import Quantization
from pagoda.weights.source import TensorSource

from .footprint import Footprint
from .model import Model
from .shape import ModelShape
from .stream_plan import PLACEMENTS, StreamPlan, StreamSizes, can_cache, plan_experts, plan_stream

if TYPE_CHECKING:
    from pagoda.weights.streaming import Rows

    from .fallback import FallbackModel
    from .packed_file import PackedFile

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that weights may take: ``whole`` if all of them stay in memory, ``streaming`` if some are read at every
    step (less, since a stream's ring and more KV stand beside them). ``beside``: what will be there once they are
    loaded, at least.
    """

    whole: int
    streaming: int
    beside: tuple[Need, ...] = ()


RoomFor = Callable[[ModelShape, str, Quantization], Room]


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a model's weights are read: all from ``source`` where ``plan`` is None. ``why_not``: where they do not fit
    and there is no plan, the reason in words. ``spooled``: the source is a file that was packed for this. ``packed``:
    what is read at every step comes from that file, all else from the source.
    """

    plan: StreamPlan | None
    source: TensorSource
    why_not: str = ""
    spooled: bool = False
    packed: PackedFile | None = None


Packer = Callable[[Model, TensorSource, Sequence[Need]], TensorSource]
"""The same weights from a file in which every matrix lies as it is multiplied (`spool.Spool.source`); BudgetError where
these needs do not fit once it is written.
"""


def choose_stream(
    folder: Path,
    model: Model | FallbackModel,
    source: TensorSource,
    dtype: str,
    weights: str,
    room: Room | None,
    pack: Packer | None = None,
    packed: PackedFile | None = None,
) -> Streaming:
    """The plan of a model whose weights are not all kept. Matrices are read from the file ``packed`` where there is
    one, from the checkpoint where enough of them lie there as they are multiplied, and from a file that ``pack`` writes
    where they do not and it helps.

    Raises ConfigError where streaming was asked for and cannot be, and what ``pack`` raises.
    """
    if weights not in PLACEMENTS:
        raise ConfigError(choices("weights", weights, PLACEMENTS))
    needed = model.shape.weight_bytes(dtype, packing_of(model))
    if model.device.type != "cpu":
        if weights in ("stream", "sparse-ffn"):
            raise ConfigError(f"weights={weights!r} is for device='cpu': a GPU's weights are not read from disk")
        return Streaming(None, source)
    room_bytes = 0 if room is None else room.streaming
    if weights == "sparse-ffn":
        if not isinstance(model, Model):
            raise ConfigError("weights='sparse-ffn' is for native families; this model runs in transformers' modules")
        from .sparse_load import plan_neurons

        return Streaming(plan_neurons(folder, model, source, dtype, room_bytes), source)
    if weights == "resident" or (weights == "auto" and (room is None or needed <= room.whole)):
        return Streaming(None, source)
    reason = "it runs in transformers' modules"
    if isinstance(model, Model):
        if packed is not None and (plan := _packed_plan(model, source, packed, dtype, room_bytes)).streamed:
            return Streaming(plan, source, packed=packed)
        plan, reason = _stream_from(model, source, dtype, room_bytes, must=weights == "stream")
        if plan is not None and plan.num_bytes <= room_bytes:
            return Streaming(plan, source)
        least = _least_packed(model, dtype)
        kept = needed if plan is None else plan.resident_bytes
        gains = least is not None and least.resident_bytes < kept and (weights == "stream" or least.num_bytes < needed)
        if pack is not None and least is not None and gains and needed > room_bytes:
            beside = () if room is None else room.beside
            source = pack(model, source, [Need("weights", least.num_bytes, "what is not on disk"), *beside])
            plan, reason = _stream_from(model, source, dtype, room_bytes, must=True)
            assert plan is not None, reason
            return Streaming(plan, source, spooled=True)
        if plan is None and room is not None and needed <= room_bytes:
            plan = StreamPlan((), needed, 0, 0)  # all of it fits
        if plan is not None:
            return Streaming(plan, source)
    reason = f"no matrix of this model can be read as it is multiplied ({reason}); {_way_out(model, folder)}"
    if weights == "auto":
        return Streaming(None, source, f"its weights cannot be left on disk: {reason}")
    raise ConfigError(f"weights='stream': {reason}")


def _stream_from(
    model: Model, source: TensorSource, dtype: str, room_bytes: int, *, must: bool
) -> tuple[StreamPlan | None, str]:
    """The plan for matrices as they lie in ``source``; or None, and why there is none, in words.

    ``must``: also one that is larger than the whole model.
    """
    shape, packing = model.shape, model.quantization
    if any(matrix.role == "experts" for matrix in shape.matrices):
        experts, why_not = model.expert_rows(source)
        if experts:
            return plan_experts(shape, dtype, packing, room_bytes), ""
        return None, why_not or "it has no experts of its own"
    rows, unfit = model.stored_rows(source)
    plan = plan_stream(shape, dtype, packing, room_bytes, {name: found.on_disk() for name, found in rows.items()})
    if rows and (must or plan.num_bytes < shape.weight_bytes(dtype, packing)):
        return plan, ""
    return None, "it is too small to gain by it" if rows else _first(model, unfit)


def _packed_plan(model: Model, source: TensorSource, packed: PackedFile, dtype: str, room_bytes: int) -> StreamPlan:
    """For matrices as they lie in the file; nothing is streamed where all fit, and of a mixture."""
    shape = model.shape
    if any(matrix.role == "experts" for matrix in shape.matrices):
        return StreamPlan((), 0, 0, 0)
    found = {name: rows.on_disk() for name, rows in packed.rows(source.names).items()}
    return StreamSizes.of_packed(shape, dtype, model.quantization, found).plan(room_bytes)


def _first(model: Model, unfit: Mapping[str, str]) -> str:
    """Why a matrix in a format of its own cannot, if there is one, or else why any cannot."""
    packed = [name for name in unfit if model.quantization.of(name, model.shape_role(name)) is not None]
    return next((unfit[name] for name in [*packed, *unfit]), "it has no matrix")


def _least_packed(model: Model, dtype: str) -> StreamPlan | None:
    """The least that must be in memory where every matrix lies as it is multiplied; None where none can."""
    shape, packing = model.shape, model.quantization
    if all(matrix.role != "experts" for matrix in shape.matrices):
        plan = plan_stream(shape, dtype, packing, 0)
        return plan if plan.streamed else None
    return plan_experts(shape, dtype, packing, 0) if can_cache(shape, packing) else None


def _way_out(model: Model | FallbackModel, folder: Path) -> str:
    if not isinstance(model, Model):
        return "a native family's can"
    if folder.is_file():
        return "take its checkpoint in safetensors, plain or written by `pagoda quantize`"
    return "`pagoda quantize` writes a checkpoint that can, for example with --format bf16 or int4"


class Filling:
    """One model's weights on their way from its checkpoint, under leases taken before the first byte is read."""

    def __init__(
        self,
        model: Model | FallbackModel,
        source: TensorSource,
        dtype: str,
        footprint: Footprint,
        progress: Progress | None,
        beside: Sequence[Need] = (),
    ) -> None:
        """``beside``: what will stand beside the weights; leases are taken only where both fit."""
        self._beside_needs = beside
        self._model, self._source, self._dtype = model, source, dtype
        self._footprint, self._progress = footprint, progress
        self._done, self._total = 0, source.num_bytes
        self._kept: Lease | None = None
        self._beyond = 0

    def whole(self, why_not: str = "", left_out: int = 0) -> Lease | None:
        """All of them stay in memory, but the bytes that the source was told to leave out. Returns their lease;
        ``why_not`` another way stands in a refusal.
        """
        try:
            return self._whole(left_out)
        except BudgetError as error:
            if not why_not:
                raise
            raise BudgetError(f"{error}; {why_not}") from error

    def _whole(self, left_out: int) -> Lease | None:
        model, packing = self._model, packing_of(self._model)
        what = f"{model.shape.family}, {self._dtype if packing.is_plain else packing}"
        names = self._source.names
        if isinstance(model, Model) and not packing.is_plain:
            names = model.load_order(names)
        num_bytes = model.shape.weight_bytes(self._dtype, packing) - left_out
        self._require(names, num_bytes)
        lease = self._lease(num_bytes, what)
        with self._staged(names):
            self._load(names)
            model.finish_loading()
        if lease is not None:
            lease.resize(model.weight_bytes)
        return lease

    def mapped(self, packed: PackedFile) -> Lease | None:
        """All of them, as pages of a file that has them packed. Returns their lease."""
        model = self._native
        num_bytes = model.shape.weight_bytes(self._dtype, model.quantization)
        self._footprint.require([Need("weights", num_bytes, "weights"), *self._beside_needs])
        lease = self._lease(num_bytes, f"{model.shape.family}, {model.quantization}, mapped")
        packed.map(self._progress)
        model.finish_loading()
        if lease is not None:
            lease.maps_file = True
            lease.resize(model.weight_bytes)
        return lease

    def streamed(self, plan: StreamPlan, packed: PackedFile | None = None) -> None:
        """What the plan keeps; the other matrices are read at every step, from the file ``packed`` if there is one."""
        from .streamed_load import stream_rest

        model, source = self._native, self._source
        rows: dict[str, Rows] = {}
        if packed is None:
            rows |= model.stored_rows(source)[0]
        else:
            rows |= packed.rows(source.names)
        lease, ring = self._load_kept(plan, f"{len(plan.streamed)} matrices", "ring of streamed weights")
        checkpoint = source.checkpoint if packed is None else packed.checkpoint()
        stream = stream_rest(model, source, plan, rows, checkpoint)
        self._beside(lease, ring, stream.close, lambda: stream.num_bytes)

    def around_experts(self, plan: StreamPlan, policy: str) -> ExpertCache:
        """Everything but the experts, and a cache for those. Raises ConfigError for an unknown policy."""
        from .streamed_load import cache_experts

        if policy not in CACHE_POLICIES:
            raise ConfigError(choices("expert_cache", policy, CACHE_POLICIES))
        lease, ring = self._load_kept(plan, "experts", f"cache of {plan.expert_slots} experts")
        cache = cache_experts(self._native, self._source, plan, policy)
        self._beside(lease, ring, cache.close, lambda: cache.num_bytes)
        return cache

    def around_neurons(self, plan: StreamPlan) -> NeuronCache:
        """Everything but feed-forward layers, what decides in those, and a cache for their neurons."""
        from .sparse_load import keep_neurons

        model = self._native
        lease, ring = self._load_kept(plan, "neurons", f"{plan.neuron_slots} neurons of every layer")
        largest = max(m.rows * m.cols for m in model.shape.matrices if m.name in plan.streamed) * model.dtype.itemsize
        packing = model.shape.packing_bytes(model.quantization)
        with self._footprint.passing("staging", largest + packing, "what decides which neurons are read"):
            cache = keep_neurons(model, plan)
        self._beside(lease, ring, cache.close, lambda: cache.num_bytes)
        return cache

    def _load_kept(self, plan: StreamPlan, on_disk: str, passing: str) -> tuple[Lease | None, Lease | None]:
        """What the plan keeps in memory. Returns its lease and that of what passes through."""
        model, source = self._native, self._source
        kept = [name for name in model.load_order(source.names) if not model.fills_only(name, plan.streamed)]
        self._require(kept, plan.resident_bytes, plan.passing_bytes)
        lease = self._lease(plan.resident_bytes, f"{model.shape.family}, {model.quantization}, {on_disk} on disk")
        self._total = sum(source.stored_bytes(name) for name in kept)
        with self._staged(kept):
            self._load(kept)
        return lease, self._footprint.lease("weights", plan.passing_bytes, passing)

    @property
    def _native(self) -> Model:
        assert isinstance(self._model, Model)  # plans are made for native families only
        return self._model

    def _lease(self, num_bytes: int, what: str) -> Lease | None:
        self._kept = self._footprint.lease("weights", num_bytes, what, lambda: self._model.weight_bytes)
        return self._kept

    def _staged(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """A lease for what stands beside the model while these tensors load."""
        return self._footprint.passing("staging", self._staged_bytes(names), "tensors while loading")

    def _staged_bytes(self, names: Sequence[str]) -> int:
        passing = self._source.passing_bytes(names, self._cut(names))
        if isinstance(self._model, Model):
            passing += self._model.packing_bytes(names, self._source.formats)
        return passing

    def _require(self, names: Sequence[str], kept: int, passing: int = 0) -> None:
        """Raises BudgetError, with the sum of all needs, where weights do not fit while they load, or later beside the
        rest.
        """
        loading = [Need("staging", self._staged_bytes(names), "tensors while loading")]
        running = [Need("weights", passing, "what passes through")] if passing else []
        running += self._beside_needs
        beside = max(loading, running, key=lambda needs: sum(need.num_bytes for need in needs))
        self._footprint.require([Need("weights", kept, "weights"), *beside])

    def _cut(self, names: Sequence[str]) -> set[str]:
        """Those that the model takes some rows at a time."""
        model, logical = self._model, self._source.logical
        return {n for n in names if isinstance(model, Model) and model.takes_rows(n, logical[n].shape)}

    def _load(self, names: Sequence[str]) -> None:
        model, cut = self._model, self._cut(names)
        for part in self._source.stream(names, cut):
            if isinstance(model, Model):
                model.load_tensor(part.name, part.tensor, part.start if part.name in cut else None)
                self._hold_beyond(part.name)
            else:
                tensor = part.tensor
                model.load_tensor(part.name, tensor if isinstance(tensor, torch.Tensor) else tensor.dense())
            self._advance(part.num_bytes)

    def _hold_beyond(self, name: str) -> None:
        """The lease grows by what only the numbers of a tensor tell."""
        more = self._native.beyond_bytes - self._beyond
        if more <= 0 or self._kept is None:
            return
        try:
            self._kept.resize(self._kept.num_bytes + more)
        except BudgetError as error:
            raise BudgetError(
                f"{error}; exponents of {name} lie too far apart for 12 bits a weight: give more memory, or "
                "--quantization bf16, which is counted whole before it is read"
            ) from error
        self._beyond += more

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    def _beside(
        self, lease: Lease | None, ring: Lease | None, close: Callable[[], None], num_bytes: Callable[[], int]
    ) -> None:
        """The model is whole; what stands beside its resident weights is closed with them, and leases become exact."""
        self._footprint.at_release(close)
        self._model.finish_loading()
        if lease is not None and ring is not None:
            lease.resize(self._model.weight_bytes)
            ring.resize(num_bytes())


def packing_of(model: Model | FallbackModel) -> Quantization:
    found: Quantization = getattr(model, "quantization", Quantization())
    return found
