"""How a budget becomes limits: what must be there before any KV, and how many tokens of KV the rest holds.

budget | runtime | weights | activations of the largest step | kv: what is left, taken block by block |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..budget import Ledger, Need
from ..core.errors import BudgetError
from ..core.types import KVFormat
from ..core.units import format_bytes, parse_bytes
from ..kv.codecs.base import with_dtype
from ..kv.device_region import EDGE_BYTES
from ..kv.grammar import parse_policy
from ..kv.persist import WRITE_BYTES
from ..kv.policies._layers import Distances, Reach, blocks_of, tokens_in
from ..kv.policies._stack import PolicyStack
from ..models.placement import Room, RoomFor
from ..models.shape import ModelShape
from ..plan.accounts import STAGING_BYTES, StepLimits, step_bytes
from ..sampling.scratch import grammar_bytes
from ..weights.quantization import Quantization
from .config import EngineConfig, longest_of

SURE_SHARE = 0.25
"""Of what an engine could have of a ledger that it shares: KV that nobody else can take from it."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a budget allows: sequence length in tokens, pool size in blocks, bytes beside the pool.

    far_tokens       tokens of the longest sequence whose KV lies in a lower tier
    reach            what windows leave of a sequence that is computed in steps of ``step_tokens``
    longest          tokens that the step's buffers are sized for; ``max_model_len`` is what of it the pool holds
    least_kv_bytes   KV without which the engine makes no sense
    stated_kv_bytes  ``kv_memory``, 0 where it was not said
    """

    max_model_len: int
    max_blocks: int
    fmt: KVFormat
    activation_bytes: int
    longest: int = 0
    reach: Reach | None = None
    step_tokens: int = 0
    least_kv_bytes: int = 0
    stated_kv_bytes: int = 0
    far_tokens: int = 0

    def most_tokens(self, max_blocks: int) -> int:
        """Of one sequence, with so many blocks in the pool."""
        return max(self.far_tokens, tokens_in(max_blocks, self.fmt, self.longest, self.reach, self.step_tokens))

    def kv_bytes(self, num_tokens: int) -> int:
        """Of one exact sequence of so many tokens, at most."""
        return blocks_of(num_tokens, self.fmt, self.reach, self.step_tokens) * self.fmt.block_bytes


def fit(
    config: EngineConfig, shape: ModelShape, dtype: str, ledger: Ledger, quantization: Quantization | None = None,
    *, ledger_is_host: bool = True, shared_room: int | None = None, far_tokens: int = 0,
) -> Sizes:  # fmt: skip
    """Divide what the ledger has left beside the weights. Raises BudgetError with the nearest budget that works.

    ``config.reserve_bytes`` stay free for the caller's own leases, where the ledger is the host's; on a device what its
    chunks hold beside pages. ``shared_room``: what the engine may come to have of a ledger that others use too; it is
    sure of the KV of one longest sequence then, and where no length was said that is ``SURE_SHARE`` of the room.
    """
    fmt = with_dtype(shape.kv_format(config.page_size, dtype), config.kv_cache_dtype)
    longest, step = longest_of(config, shape), config.max_num_batched_tokens
    reach = reach_of(config, shape) if shared_room is None else None
    activations = _activations(config, shape, dtype, quantization or Quantization())
    reserve = reserved_bytes(config, ledger) if ledger_is_host else EDGE_BYTES
    account, what = ("server", "what the caller holds") if ledger_is_host else ("kv", "edges of chunks")
    least = _least(config, longest, fmt)
    left = ledger.free_bytes if shared_room is None else shared_room
    left -= activations + STAGING_BYTES + reserve
    if shared_room is not None:
        least = _sure(least, longest, fmt, left)
    least_bytes = blocks_of(least, fmt, reach, step) * fmt.block_bytes
    needs = [
        Need("activations", activations, "activations"),
        Need("staging", STAGING_BYTES, "staging"),
        *([Need(account, reserve, what)] if reserve else []),
        Need("kv", least_bytes, f"KV of {least} tokens"),
    ]
    ledger.require(needs)
    stated = 0
    if config.kv_memory is not None:
        stated = _stated_kv_bytes(config, least, least_bytes)
        left = min(left, stated)
    max_blocks = min(left // fmt.block_bytes, (2**31 - 1) // fmt.pages_per_block)
    fitting = tokens_in(max_blocks, fmt, longest, reach, step) if shared_room is None else min(longest, least)
    return Sizes(
        max(far_tokens, fitting), max_blocks, fmt, activations, longest, reach, step, least_bytes, stated, far_tokens
    )  # fmt: skip


def reach_of(config: EngineConfig, shape: ModelShape) -> Reach | None:
    """What windows leave of sequences, as the engine's own policy stores them."""
    policy = parse_policy(config.kv)
    stored = PolicyStack(codec=policy.codec, offload=policy.offload)
    return Distances(shape.windows).fit(stored, longest_of(config, shape)).reach


def kv_beside(left: int, least: int, most: int) -> int:
    """KV that weights which need not all be in memory leave room for, of ``left`` bytes for both: an eighth, or
    ``most`` (the longest sequence's) if that is less.
    """
    return max(least, min(most, left // 8))


def sure_kv_bytes(config: EngineConfig, shape: ModelShape, dtype: str, left: int) -> int:
    """KV that an engine leases at once where it shares its ledger, and could have ``left`` bytes of it for KV."""
    fmt = with_dtype(shape.kv_format(config.page_size, dtype), config.kv_cache_dtype)
    longest = longest_of(config, shape)
    return fmt.blocks_for(_sure(_least(config, longest, fmt), longest, fmt, left)) * fmt.block_bytes


def _sure(least: int, longest: int, fmt: KVFormat, left: int) -> int:
    return max(least, min(longest, int(left * SURE_SHARE) // fmt.block_bytes * fmt.page_size))


def reserved_bytes(config: EngineConfig, ledger: Ledger) -> int:
    """What has to stay free for the caller's own leases: those that it has not taken yet."""
    return max(0, config.reserve_bytes - ledger.leased_by("server"))


def kept_bytes(config: EngineConfig) -> int:
    """What keeping prefixes takes of this machine's memory."""
    if config.kv_dir is None and config.kv_host is None:
        return 0
    return WRITE_BYTES + (0 if config.kv_host is None else parse_bytes(config.kv_host, what="kv_host"))


def weight_room(
    config: EngineConfig, ledger: Ledger, free_bytes: Callable[[], int], far_bytes: Callable[[ModelShape, str], int],
    *, is_shared: bool = False,
) -> RoomFor:  # fmt: skip
    """What weights may take of what the host's ledger has for this engine, so that a step and KV fit beside them, what
    is kept of prefixes, and ``far_bytes`` of a lower tier and the window on it.

    Streamed weights leave an eighth of it, or the KV of one sequence as long as can be, to KV: with less, few
    sequences would share the pass over the weights that every step pays for.
    """

    def room(shape: ModelShape, dtype: str, quantization: Quantization) -> Room:
        fmt = with_dtype(shape.kv_format(config.page_size, dtype), config.kv_cache_dtype)
        longest = longest_of(config, shape)
        tokens = _least(config, longest, fmt)
        reach, step = reach_of(config, shape), config.max_num_batched_tokens
        least, most = (blocks_of(n, fmt, reach, step) * fmt.block_bytes for n in (tokens, longest))
        grammars = grammar_bytes(shape.vocab_size) if config.structured_output else 0
        needs = [
            Need("activations", _activations(config, shape, dtype, quantization), "activations"),
            Need("staging", STAGING_BYTES, "staging"),
            Need("grammars", grammars, "structured output"),
            Need("server", reserved_bytes(config, ledger), "what the caller holds"),
            Need("cache", kept_bytes(config), "kept prefixes"),
            Need("cache", far_bytes(shape, dtype), "offloaded KV"),
        ]
        left = free_bytes() - sum(need.num_bytes for need in needs)
        beside = [*(need for need in needs if need.num_bytes), Need("kv", least, f"KV of {tokens} tokens")]
        return Room(left - least, left - kv_beside(left, least, most), () if is_shared else tuple(beside))

    return room


def _activations(config: EngineConfig, shape: ModelShape, dtype: str, quantization: Quantization) -> int:
    step = StepLimits(config.max_num_batched_tokens, config.max_num_seqs, longest_of(config, shape))
    return step_bytes(shape, dtype, quantization, step)


def _least(config: EngineConfig, longest: int, fmt: KVFormat) -> int:
    """Tokens of KV without which nothing works: with "auto" one step's worth; a stated length must fit whole, unless
    such a sequence may lie in a lower tier.
    """
    whole = config.max_model_len != "auto" and config.kv_offload is None
    return longest if whole else min(longest, 16 * fmt.page_size)


def _stated_kv_bytes(config: EngineConfig, least: int, needed: int) -> int:
    assert config.kv_memory is not None
    num_bytes = parse_bytes(config.kv_memory, what="kv_memory")
    if num_bytes < needed:
        raise BudgetError(
            f"kv_memory {config.kv_memory!r} is {format_bytes(num_bytes)}, but {least} tokens of this model's KV take "
            f"{format_bytes(needed)}; raise it to that, or lower max_model_len"
        )
    return num_bytes
