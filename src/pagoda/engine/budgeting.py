"""A running engine's budget changes: pages follow at once, sequences that no longer fit wait their turn again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..budget import default_budget
from ..core.errors import BudgetError, ConfigError
from ..core.units import format_bytes, parse_bytes
from ..kv.device_region import EDGE_BYTES
from .sizing import reserved_bytes

if TYPE_CHECKING:
    from .build import Built


def set_budget(built: Built, memory: str | int | float) -> int:
    """Gives the engine another budget between two steps; returns it in bytes.

    Growing takes effect at the next step. When it shrinks, free pages and unused prefixes go first; then running
    sequences, the last in rank first, give up theirs and are computed again when there is room.

    Raises ConfigError or BudgetError, with the nearest budget that can, and nothing has changed.
    """
    if built.ground.is_shared:
        raise ConfigError("this engine shares its budget with others; POST /admin/budget changes it for all of them")
    budget = default_budget(memory, built.probe)
    ledger, stores, sizes = built.ledger, built.engine.stores, built.sizes
    built.ground.check_free(budget.total_bytes - ledger.total_bytes)
    reserve = EDGE_BYTES if built.is_on_cuda else reserved_bytes(built.config, ledger)
    beside = ledger.leased_bytes - ledger.leased_by("kv") - ledger.leased_by("policies") + reserve
    least = beside + sizes.least_kv_bytes
    if budget.total_bytes < least:
        raise BudgetError(
            f"a budget of {format_bytes(budget.total_bytes)} leaves no room for KV beside weights and the rest "
            f"({format_bytes(beside)}); the nearest budget that can is {-(-least >> 20)}MiB"
        )
    total = budget.total_bytes - beside
    if built.config.kv_memory is not None:
        total = min(total, sizes.stated_kv_bytes)
    stores.set_total(total)
    while stores.excess_bytes and built.engine.preempt_last():
        stores.give_back(stores.excess_bytes)
    ledger.set_total(budget.total_bytes, reason=budget.reason)
    max_blocks = stores.default.manager.pool.limit_blocks
    max_model_len = sizes.most_tokens(max_blocks)
    built.sizes = replace(sizes, max_blocks=max_blocks, max_model_len=max_model_len)
    built.engine.max_model_len = max_model_len
    return budget.total_bytes


def refit(built: Built) -> None:
    """KV may take what the ledger's total, which was changed, has for this engine among others."""
    sure = built.required_bytes
    total = built.ground.room(built.config.model, sure - built.engine.stores.sure_bytes)
    if built.config.kv_memory is not None:
        total = min(total, built.sizes.stated_kv_bytes)
    built.engine.stores.set_total(max(total, built.engine.stores.sure_bytes))


def resize_weights(built: Built, num_bytes: str | int) -> int:
    """Gives bitstack weights another size between two steps; what they give up is KV's. Returns their bytes.

    Running sequences go on with the KV that they have. A prefix cache would mix the KV of several sizes, so it has to
    be off. Raises ConfigError, BudgetError or WeightsError, and nothing has changed.
    """
    stacks = built.loaded.stacks
    if stacks is None:
        raise ConfigError("this model runs in transformers' modules, whose weights stay as they are")
    if built.config.enable_prefix_caching:
        raise ConfigError(
            "weights of a changing size would mix their KV in the prefix cache; start with enable_prefix_caching=False"
        )
    total = stacks.resize(parse_bytes(num_bytes, what="weights"))
    set_budget(built, built.ledger.total_bytes)
    return total
