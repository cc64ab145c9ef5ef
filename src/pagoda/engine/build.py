"""An engine from its configuration: the budget is divided and leased before the bytes are touched."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from ..budget import Ledger, MachineProbe, heap_bytes, reconcile, trim_heap
from ..budget.ledger import SPARE, Lease
from ..core.clock import Clock, SystemClock
from ..core.errors import ConfigError
from ..core.types import Granularity
from ..kv.pages import PagePool
from ..kv.persist import WRITE_BYTES
from ..kv.prefix import PrefixCache
from ..kv.stores import Stores
from ..kv.tiers.host import HostTier
from ..models.load import Loaded, load_model
from ..plan.accounts import STAGING_BYTES
from ..sampling.grammar import GrammarCompiler
from ..sampling.scratch import grammar_bytes
from ..schedule.scheduler import Limits
from .config import EngineConfig
from .engine import Engine
from .ground import Ground
from .keeping import open_persistence, open_tier
from .offloading import far_bytes, offload_sizes
from .picture import held_bytes, pages_by_granularity, picture_of
from .profile import Profile, profile_of
from .scheduling import policy_for
from .shadow import Shadows
from .sizing import Sizes, fit, weight_room

GIVE_WAY_BYTES = 8 << 20
"""What an engine gives to another that asks for less: it would soon ask again."""
COLLECTED_BYTES = 64 << 20
"""Weights that are worth looking for the last references to."""


def run_here(work: Callable[[], int]) -> int:
    """The simplest ``Built.between_steps``."""
    return work()


@dataclass(slots=True)
class Built:
    """An engine with what it stands on. ``startup`` seconds by phase."""

    config: EngineConfig
    engine: Engine
    loaded: Loaded
    ground: Ground
    sizes: Sizes
    startup: dict[str, float]
    leases: list[Lease]
    grammars: GrammarCompiler
    between_steps: Callable[[Callable[[], int]], int] = run_here
    """Runs something while no step is under way: at once, or, where the engine has a thread of its own, over there."""

    @property
    def ledger(self) -> Ledger:
        return self.ground.ledger

    @property
    def probe(self) -> MachineProbe:
        return self.ground.probe

    @property
    def is_on_cuda(self) -> bool:
        return self.ground.is_on_cuda

    def stats(self) -> dict[str, Any]:
        """Plain data: ``memory`` (ledger against the kernel), ``kv``, ``queue``, ``steps``, ``startup``, ``model``;
        ``profile`` where ``PAGODA_PROFILE=1``."""
        engine, profile = self.engine, self.profile()
        return ({} if profile is None else {"profile": profile.as_dict()}) | {
            "memory": reconcile(self.ledger, self.probe).as_dict(),
            "kv": engine.stores.stats(),
            "disk": None if engine.persistence is None else engine.persistence.as_dict(),
            "queue": {
                "running": len(engine.scheduler.running),
                "waiting": len(engine.scheduler.waiting),
                "preemptions": engine.scheduler.num_preemptions,
            },
            "steps": asdict(engine.counters),
            "shadow": engine.shadows.stats(),
            "structured": {"masks": engine.num_masks},
            "startup": dict(self.startup),
            "model": {
                "name": self.config.model,
                "family": self.loaded.shape.family,
                "dtype": self.loaded.dtype,
                "dtype_reason": self.loaded.dtype_reason,
                "quantization": str(self.loaded.quantization),
                "weights": self.loaded.placement,
                "neurons": None if self.loaded.neurons is None else asdict(self.loaded.neurons.counters),
                "expert_cache": None if self.loaded.experts is None else asdict(self.loaded.experts.counters),
                "num_params": self.loaded.shape.num_params,
                "page_size": self.sizes.fmt.page_size,
                "max_model_len": self.sizes.max_model_len,
                "kv_capacity_tokens": self.sizes.max_blocks * self.sizes.fmt.page_size,
            },
        }

    def profile(self) -> Profile | None:
        """Seconds inside kernels by kind; None unless the process runs with ``PAGODA_PROFILE=1``."""
        return profile_of(self.loaded, self.engine.counters)

    def watched(self, *, with_picture: bool = False) -> dict[str, Any]:
        """``stats`` and what metrics and the web page show beside it; ``with_picture`` also sequences and prefixes."""
        engine = self.engine
        stats = self.stats()
        shown = picture_of(engine) if with_picture else {}
        stats["kv"] |= shown.pop("kv", {})
        return stats | shown | {
            "time": engine.clock.now(),
            "pages_by_granularity": pages_by_granularity(engine.stores),
            "held_bytes_by_request": held_bytes(list(engine.scheduler.running.values())),
        }  # fmt: skip

    def audit(self) -> None:
        """Recount every page reference. Raises AssertionError naming the page that is wrong."""
        self.engine.stores.audit()

    def give_way(self, num_bytes: int) -> int:
        """Free pages and unused prefixes go back to the ledger, up to that many bytes; returns how many."""
        num_bytes = max(num_bytes, GIVE_WAY_BYTES) if self.ground.is_shared else num_bytes
        return self.between_steps(lambda: self.engine.stores.give_back(num_bytes))

    @property
    def required_bytes(self) -> int:
        """What it cannot work without: all its leases, but of KV what it is sure of."""
        leases = sum(lease.num_bytes for lease in self.leases if lease.account != "kv")
        return leases + self.loaded.footprint.leased_bytes + self.engine.stores.sure_bytes

    def sleep(self) -> None:
        """Give pages and weights back. What the model's folder says stays, and so does the budget (see `rebuild`)."""
        self.ground.held.pop(id(self), None)
        self.engine.close()
        self.loaded.close(keeps_tokenizer=True)
        self.grammars = _grammars(self.loaded, self.config)
        while self.leases:
            self.leases.pop().release()
        gc.collect()
        self._trim()

    def close(self) -> None:
        """Give pages, weights and leases back."""
        num_bytes = self.loaded.model.weight_bytes
        self.ground.held.pop(id(self), None)
        self.engine.close()
        self.loaded.close()
        for lease in self.leases:
            lease.release()
        if self.ground.runtime is not None and not self.ground.is_shared:
            self.ground.runtime.release()
        if num_bytes > COLLECTED_BYTES:  # layers and their program hold each other; a collection takes 0.2 s
            gc.collect()
        self._trim()

    def _trim(self) -> None:
        trim_heap()
        if self.is_on_cuda:
            torch.cuda.empty_cache()


def _window_bytes(stores: Stores) -> int:
    return 0 if stores.offloaded is None else stores.offloaded.storage.resident_bytes()


def _grammars(loaded: Loaded, config: EngineConfig) -> GrammarCompiler:
    tokenizer = loaded.tokenizer
    return GrammarCompiler(
        lambda: [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
        eos_ids=[token_id for token_id in loaded.eos_ids if token_id < tokenizer.vocab_size],
        special_ids=tokenizer.special_ids,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        heap_bytes=heap_bytes,
        switched_off=not config.structured_output,
    )


def build(config: EngineConfig, clock: Clock | None = None, *, ground: Ground | None = None) -> Built:
    """An engine on a ground of its own, or on one that it shares.

    Raises ConfigError, ModelError or BudgetError; what was leased until then is given back.
    """
    started = time.perf_counter()
    return _build(config, ground or Ground.of(config), clock, started)


def rebuild(asleep: Built) -> Built:
    """The engine again, after ``Built.sleep``, in the same budget. Raises as ``build`` does, and it sleeps on."""
    config = replace(asleep.config, progress=None)
    built = _build(config, asleep.ground, asleep.engine.clock, time.perf_counter())
    asleep.loaded.footprint.release()
    built.engine.events, built.between_steps = asleep.engine.events, asleep.between_steps
    return built


def _build(config: EngineConfig, ground: Ground, clock: Clock | None, started: float) -> Built:
    try:
        with ExitStack() as undo:
            built = _made(config, ground, clock, started, undo)
            undo.pop_all()
    except BaseException:
        trim_heap()  # weights that were read in vain
        raise
    ground.tokenizers[config.model] = built.loaded.footprint.leased_by("tokenizer")
    return built


def _made(config: EngineConfig, ground: Ground, clock: Clock | None, started: float, undo: ExitStack) -> Built:
    ledger, probe, on_cuda = ground.ledger, ground.probe, ground.is_on_cuda
    leases = list[Lease]()
    undo.callback(lambda: [lease.release() for lease in leases])
    limits = Limits(max(config.max_num_batched_tokens, 1), min(config.max_num_seqs, config.max_num_batched_tokens))
    imported = time.perf_counter()

    loaded = load_model(
        config.model,
        dtype=config.dtype,
        quantization=config.quantization,
        device=config.device,
        ledger=ledger,
        max_model_len=None if config.max_model_len == "auto" else int(config.max_model_len),
        weights=config.weights,
        expert_cache=config.expert_cache,
        spool_dir=config.spool_dir,
        room=None
        if on_cuda
        else weight_room(
            config,
            ledger,
            lambda: ground.room(config.model, ground.new_tokenizer_bytes(config.model)),
            partial(far_bytes, config),
            is_shared=ground.is_shared,
        ),
        progress=config.progress,
    )
    undo.callback(loaded.close)
    weights_read = time.perf_counter()
    scheduling = policy_for(config.scheduling, loaded.path)
    grammars = _grammars(loaded, config)
    if config.structured_output and not on_cuda:  # the trie is the host's; a device's ledger does not count that
        num_bytes = grammar_bytes(loaded.tokenizer.vocab_size)
        leases.append(ledger.lease("grammars", num_bytes, "structured output", lambda: grammars.trie_bytes))

    kept = open_tier(config)
    io_lease = ledger.lease("staging", 0 if kept is None else WRITE_BYTES, "KV on its way to disk", lambda: 0)
    leases.append(io_lease)
    if isinstance(kept, HostTier) and not on_cuda:  # a device's ledger does not count the host
        host = kept
        leases.append(ledger.lease("cache", host.budget_bytes, "KV kept packed", lambda: host.used_bytes))
    far = offload_sizes(config, loaded.shape, loaded.dtype)
    if far is not None:
        if on_cuda:
            raise ConfigError("kv_offload works on a CPU only so far; leave it out, or choose device='cpu'")
        leases += [
            ledger.lease("staging", far.window_bytes, "window on offloaded KV", lambda: _window_bytes(stores)),
            ledger.lease("cache", far.host_bytes, "offloaded KV", lambda: 0),  # a memfd that nobody maps is no RSS
        ]
    own_bytes = loaded.footprint.leased_bytes + sum(lease.num_bytes for lease in leases)
    room = ground.room(config.model, own_bytes) if ground.is_shared else None
    sizes = fit(
        config, loaded.shape, loaded.dtype, ledger, loaded.quantization, ledger_is_host=not on_cuda, shared_room=room,
        far_tokens=0 if far is None else far.longest,
    )  # fmt: skip
    working_bytes = (lambda: 0) if on_cuda else ground.step_heap_bytes
    leases += [
        ledger.lease("activations", sizes.activation_bytes, "largest step", resident=working_bytes),
        ledger.lease("staging", STAGING_BYTES, "step metadata and copies", resident=lambda: 0),
    ]
    kv_bytes = sizes.max_blocks * sizes.fmt.block_bytes
    kv_lease = ledger.lease("kv", 0, "pages", resident=lambda: stores.touched_bytes, priority=SPARE)
    state_lease = ledger.lease("policies", 0, "what KV policies remember")
    leases += [kv_lease, state_lease]
    clock = clock or SystemClock()

    def make_prefix(pool: PagePool) -> PrefixCache | None:
        return PrefixCache(pool, fingerprint=loaded.kv_fingerprint, clock=clock.now) if caching else None

    caching = config.enable_prefix_caching
    stores = Stores(
        sizes.fmt,
        kv_bytes,
        kv_lease,
        state_lease,
        loaded.model.device,
        make_prefix,
        address_bytes=probe.limit()[0],
        windows=loaded.shape.windows,
    )
    undo.callback(stores.close)
    if far is not None:
        stores.offload(far.open(), far.window_bytes, far.longest)
    if ground.is_shared:
        kv_lease.asks = state_lease.asks = False  # a step does not wait for another engine's
        stores.keep(sizes.least_kv_bytes)
    persistence = None if kept is None else open_persistence(kept, stores.default, ledger, io_lease, config)
    engine = Engine(
        loaded,
        stores,
        limits=limits,
        policy=scheduling,
        max_model_len=sizes.max_model_len,
        clock=clock,
        use_prefix=config.enable_prefix_caching,
        granularity=None if config.granularity == "auto" else Granularity(config.granularity),
        audit_steps=config.audit,
        shadows=Shadows(config.shadow),
        persistence=persistence,
    )
    ready = time.perf_counter()
    startup = {
        "imports_and_budget": imported - started,
        "weights": weights_read - imported,
        "pages": ready - weights_read,
        "total": ready - started,
    }
    built = Built(config, engine, loaded, ground, sizes, startup, leases, grammars)
    kv_lease.reclaim = built.give_way
    ground.held[id(built)] = lambda: loaded.model.weight_bytes + grammars.trie_bytes + stores.remembered_bytes
    return built
