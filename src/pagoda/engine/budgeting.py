"""A running engine's budget changes: pages follow at once, sequences that no longer fit wait their turn again.

Weights in bitstack follow too: of what a budget leaves beside the rest, KV has an eighth, or the longest sequence's if
that is less; blocks take what they can of the others (all of them, in a budget that is large enough), KV what is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from ..budget import Budget
from ..core.errors import BudgetError, ConfigError, PagodaError
from ..core.units import format_bytes, parse_bytes
from ..kv.device_region import EDGE_BYTES
from .ground import stated_budget
from .keeping import resized_disk
from .sizing import kv_beside, reserved_bytes

if TYPE_CHECKING:
    from ..models.resizing import BlockStacks
    from .build import Built


Amount: TypeAlias = str | int | float
"""Bytes, their text, or a share of the machine."""


def set_budgets(
    built: Built,
    memory: Amount | None = None,
    *,
    host_memory: Amount | None = None,
    device_memory: Amount | None = None,
    disk: str | int | None = None,
) -> int:
    """Other budgets between two steps, of all places or of one, by the rules of the same options at the start; what is
    not said stays. Returns that of the place where the engine runs, in bytes.

    Raises ConfigError or BudgetError, and nothing has changed.
    """
    said = {"memory": memory, "host_memory": host_memory, "device_memory": device_memory}
    said = {name: value for name, value in said.items() if value is not None}
    if not said and disk is None:
        raise ConfigError("no budget is named; say memory, host_memory, device_memory or disk")
    persistence = built.engine.persistence
    resize = None if disk is None else resized_disk(None if persistence is None else persistence.tier, disk)
    if said:
        if built.ground.is_shared:
            raise ConfigError(
                "this engine shares its budget with others; POST /admin/budget changes it for all of them"
            )
        config = replace(built.config, **said)  # type: ignore[arg-type]
        set_budget(built, stated_budget(config, built.probe))
        built.config = config
    if resize is not None:
        resize()
        built.config = replace(built.config, disk=disk)
    return built.ledger.total_bytes


def set_budget(built: Built, budget: Budget) -> None:
    """Gives the engine another budget between two steps.

    Growing takes effect at the next step. When it shrinks, blocks of bitstack weights go that the smaller budget has no
    place for, free pages and unused prefixes; then running sequences, the last in rank first, give up theirs and are
    computed again when there is room.

    Raises ConfigError or BudgetError, with the nearest budget that can, or WeightsError where a block cannot be read
    again, and nothing has changed.
    """
    ledger, stores, sizes = built.ledger, built.engine.stores, built.sizes
    built.ground.check_free(budget.total_bytes - ledger.total_bytes)
    reserve = EDGE_BYTES if built.is_on_cuda else reserved_bytes(built.config, ledger)
    beside = ledger.leased_bytes - ledger.leased_by("kv") - ledger.leased_by("policies") + reserve
    stacks = _moving(built)
    if stacks is not None:
        beside -= built.loaded.model.weight_bytes
    weights, least_weights = (0, 0) if stacks is None else _weights_in(built, stacks, budget.total_bytes - beside)
    least = beside + least_weights + sizes.least_kv_bytes
    if budget.total_bytes < least:
        raise BudgetError(
            f"a budget of {format_bytes(budget.total_bytes)} leaves no room for KV beside weights and the rest "
            f"({format_bytes(beside + least_weights)}); the nearest budget that can is {-(-least >> 20)}MiB"
        )
    total = budget.total_bytes - beside - weights
    if built.config.kv_memory is not None:
        total = min(total, sizes.stated_kv_bytes)
    before = ledger.total_bytes, ledger.reason, stores.total_bytes
    if stacks is not None and weights < built.loaded.model.weight_bytes:
        _move(built, stacks, weights)
    stores.set_total(total)
    while stores.excess_bytes and built.engine.preempt_last():
        stores.give_back(stores.excess_bytes)
    ledger.set_total(budget.total_bytes, reason=budget.reason)
    if stacks is not None and weights > built.loaded.model.weight_bytes:
        try:
            _move(built, stacks, weights)
        except PagodaError:
            stores.set_total(before[2])
            ledger.set_total(before[0], reason=before[1])
            raise
    max_blocks = stores.default.manager.pool.limit_blocks
    max_model_len = sizes.most_tokens(max_blocks)
    built.sizes = replace(sizes, max_blocks=max_blocks, max_model_len=max_model_len)
    built.engine.admission.max_model_len = max_model_len


def refit(built: Built) -> None:
    """KV may take what the ledger's total, which was changed, has for this engine among others."""
    sure = built.required_bytes
    total = built.ground.room(built.config.model, sure - built.engine.stores.sure_bytes)
    if built.config.kv_memory is not None:
        total = min(total, built.sizes.stated_kv_bytes)
    built.engine.stores.set_total(max(total, built.engine.stores.sure_bytes))


def resize_weights(built: Built, num_bytes: str | int) -> int:
    """Bitstack weights take that much at most from the next step on, in this budget and in later ones; ``"auto"`` ends
    that. What they give up is KV's. Returns their bytes.

    Running sequences go on with the KV that they have (see `_move`). Raises ConfigError, BudgetError or WeightsError,
    and nothing has changed.
    """
    stacks = built.loaded.stacks
    if stacks is None:
        raise ConfigError("this model runs in transformers' modules, whose weights stay as they are")
    before = stacks.most_bytes
    most = None if num_bytes == "auto" else parse_bytes(num_bytes, what="weights")
    stacks.check(most)
    if built.ground.is_shared:
        raise ConfigError("this engine shares its budget with others: its weights stay as they were loaded")
    stacks.most_bytes = most
    try:
        set_budget(built, Budget(built.ledger.total_bytes, built.ledger.reason))
    except PagodaError:
        stacks.most_bytes = before
        raise
    return built.loaded.model.weight_bytes


def keep_size(asleep: Built, built: Built) -> None:
    """What `resize_weights` said holds for the engine that wakes, too."""
    old, new = asleep.loaded.stacks, built.loaded.stacks
    if old is not None and new is not None and old.most_bytes is not None:
        resize_weights(built, old.most_bytes)


def _moving(built: Built) -> BlockStacks | None:
    stacks = built.loaded.stacks
    return stacks if stacks is not None and stacks.moves and not built.ground.is_shared else None


def _weights_in(built: Built, stacks: BlockStacks, left: int) -> tuple[int, int]:
    """Bytes of the weights where ``left`` bytes are for them and KV, and the least that they take."""
    if built.config.weights == "resident":
        whole = stacks.bytes_in(stacks.most_bytes)
        return whole, whole
    sizes = built.sizes
    most_kv = sizes.kv_bytes(sizes.longest)
    if built.config.kv_memory is not None:
        most_kv = min(most_kv, sizes.stated_kv_bytes)
    room = left - kv_beside(left, sizes.least_kv_bytes, most_kv)
    return stacks.bytes_in(room if stacks.most_bytes is None else min(room, stacks.most_bytes)), stacks.least_bytes


def _move(built: Built, stacks: BlockStacks, num_bytes: int) -> None:
    """Blocks come or go. KV of one size is found again by that size only, and the KV of sequences that run across a
    move, which is of both, by nobody: they keep it, and go on by the new weights.
    """
    engine, num_kept = built.engine, stacks.num_kept
    stacks.resize(num_bytes)
    if stacks.num_kept != num_kept:
        if engine.persistence is not None:
            engine.persistence.forget_all()
        engine.stores.name_prefixes(built.loaded.kv_fingerprint)
