"""What an engine will lease of a shared ledger, before it is built: so that room is made once, and not by trying."""

from __future__ import annotations

from ..core.errors import BudgetError, UnsupportedModelError
from ..core.types import DTYPE_BYTES
from ..core.units import format_bytes
from ..models.catalog import folder_of, read_config
from ..plan.accounts import STAGING_BYTES, StepLimits, step_bytes
from ..plan.streamed import Rooms
from ..plan.subject import Subject
from ..sampling.scratch import grammar_bytes
from .config import EngineConfig, longest_of
from .ground import Ground
from .offloading import offload_sizes
from .sizing import kept_bytes, sure_kv_bytes


def needed_bytes(
    config: EngineConfig, ground: Ground, *, total_bytes: int | None = None, leaving_bytes: int = 0
) -> int:
    """Bytes that must be free for the engine to be built and to answer its longest request.

    ``total_bytes``: of a budget that may come, instead of the one that is. ``leaving_bytes``: of those that stay for
    others, which would leave in this case.

    A model whose bytes are known only once it is loaded, or that has to leave weights on disk, needs all that others
    can give (of the latter the least is known).
    Raises ModelError where there is no such model, BudgetError where the whole budget is too small for it.
    """
    sleeping = ground.tokenizers.get(config.model, 0)  # of itself; it is there until the new one is
    total = ground.ledger.total_bytes if total_bytes is None else total_bytes
    more = total - ground.ledger.total_bytes + leaving_bytes
    whole, raw = ground.room(config.model, sleeping) + more, read_config(config.model)
    try:
        subject = Subject.of(config.model, raw, folder=folder_of(config.model), probe=ground.probe)
        dtype = config.dtype if config.dtype in DTYPE_BYTES else subject.dtype
        shape, packing = subject.shape, subject.quantization(config.quantization)
        longest = longest_of(config, shape)
    except UnsupportedModelError:  # transformers' modules, or packed weights
        return whole
    beside = shape.weight_bytes(dtype, packing) + subject.tokenizer_bytes
    beside += grammar_bytes(shape.vocab_size) if config.structured_output else 0
    beside += kept_bytes(config)
    far = offload_sizes(config, shape, dtype)
    beside += 0 if far is None else far.host_bytes + far.window_bytes
    limits = StepLimits(config.max_num_batched_tokens, config.max_num_seqs, longest)
    step = step_bytes(shape, dtype, packing, limits) + STAGING_BYTES
    kv = sure_kv_bytes(config, shape, dtype, ground.room(config.model, beside) + more - step)
    ready = subject.stored is not None and config.quantization == "auto"
    loading = shape.reading_bytes(dtype, packing) + shape.packing_bytes(packing, ready=ready)
    needed = beside + max(step + kv, loading)
    if ready and config.weights in ("auto", "stream"):
        return min(needed, whole)  # what of it can stay on disk is known once its files are open
    least = needed
    if subject.streams and config.weights in ("auto", "stream") and (plan := Rooms(shape, dtype, packing).plan(0)):
        least += plan.num_bytes - shape.weight_bytes(dtype, packing)
    if least <= whole:
        return min(needed, whole)
    raise BudgetError(
        f"{config.model} needs {format_bytes(least)}, but with the others unloaded the {format_bytes(total)} budget "
        f"leaves {format_bytes(max(0, whole))}; the nearest that can is {-(-(least - whole + total) >> 20)}MiB"
    )
