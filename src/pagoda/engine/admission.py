"""Who may come in: a request that this model could never run is refused, by name and with what is possible."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from torch import Tensor

from ..core.errors import PagodaError, RequestError
from ..core.units import format_bytes
from ..kv.policies._stack import PolicyStack
from ..kv.policies.base import Heads, Selection
from ..kv.store import Store
from ..kv.stores import Stores
from ..models.load import Loaded
from .calibrations import Calibrations, NotFree
from .lossy_layers import on_this_model
from .request import Request, check_prompt_ids


class Admission:
    """Of one engine; nothing is kept of a request."""

    def __init__(
        self, loaded: Loaded, stores: Stores, calibrations: Calibrations, max_model_len: int, step_tokens: int
    ) -> None:
        self._loaded, self._stores, self._calibrations = loaded, stores, calibrations
        self._step_tokens = step_tokens  # most that are computed at a time
        self.max_model_len = max_model_len  # another budget may change it

    def check(self, request: Request) -> None:
        """Raises RequestError for a prompt, sampling parameters or a KV policy that this model cannot run. The policy
        is that of this model's layers from here on.
        """
        vocab_size = self._loaded.shape.vocab_size
        check_prompt_ids(request.prompt_ids, vocab_size, self.max_model_len)
        request.params.check_vocabulary(vocab_size)
        self._check_policy(request)

    def _check_policy(self, request: Request) -> None:
        """Raises RequestError for a policy that this model cannot run, or that was not calibrated for it."""
        policy = request.policy
        if policy.window < 0:  # asked once and remembered: a property that raises does so here, and not in a step
            raise RequestError(
                f"kv={policy.spelled!r} looks at the newest {policy.window} queries; 0 or more are possible"
            )
        self._stores.check(policy.codec, offload=policy.offload)
        request.policy = self.fit(policy)
        reason = None
        if policy.selection is not None:
            reason = policy.selection.why_not(self._stores.default.fmt.page_size)
        if policy.eviction is not None and reason is None:
            reason = policy.eviction.why_not(self._loaded.shape.num_q_heads, self.max_model_len)
        if reason is not None:
            raise RequestError(f"kv={policy.spelled!r}: {reason}")
        for method in policy.calibrated:
            try:
                self._load(method, policy)
            except NotFree as error:  # it waits until that is free
                if error.num_bytes > self._stores.total_bytes:
                    raise

    def why_not_loaded(self, request: Request) -> str | None:
        """Reads what the request's policy was calibrated to, if it is not there; or says why that cannot be now."""
        try:
            for method in request.policy.calibrated:
                self._load(method, request.policy)
        except PagodaError as error:
            return str(error)
        return None

    def _load(self, method: str, policy: PolicyStack) -> Mapping[str, Tensor]:
        part, shape = policy.learners[method], self._loaded.shape
        heads = Heads(shape.num_q_heads, shape.num_kv_heads, shape.k_dim, shape.v_dim)
        found = self._calibrations.load(method, part.complete if isinstance(part, Selection) else dict)
        self._calibrations.check(method, part.learned_sizes(heads))
        return found

    def fit(self, policy: PolicyStack) -> PolicyStack:
        """See ``on_this_model``."""
        return on_this_model(policy, self._loaded, self.max_model_len)

    def learned(self, request: Request) -> Mapping[str, Tensor]:
        """What the request's selection, or the residual of its eviction, was calibrated to. Raises ConfigError if it
        wants that and was not.
        """
        policy = request.policy
        if policy.leaves_residual:
            return self._load(policy.names[0], policy)
        if policy.selection is None or policy.chooses_by not in policy.calibrated:
            return {}
        return self._load(policy.chooses_by, policy)

    def room_for(self, request: Request, store: Store) -> int:
        """Tokens that an answer may have. Raises RequestError when the pool could never hold prompt and answer."""
        num_prompt, params = len(request.prompt_ids), request.params
        width = params.beam_width or 1
        fmt, max_blocks = store.fmt, store.manager.pool.limit_blocks
        capacity = max_blocks // width * fmt.page_size
        room = self.max_model_len - num_prompt

        def peak(num_tokens: int) -> int:
            return request.policy.peak_slots(num_tokens, num_prompt, self._step_tokens)

        if params.max_tokens is not None:
            room = min(room, params.max_tokens)
        elif peak(num_prompt + room) > capacity:
            room = bisect_right(range(num_prompt, num_prompt + room + 1), capacity, key=peak) - 1
        wanted = peak(num_prompt + max(room, 1))
        if room < 1 or wanted > capacity:
            needed, held = fmt.blocks_for(wanted) * width * fmt.block_bytes, max_blocks * fmt.block_bytes
            beams = f" in each of {width} beams" if width > 1 else ""
            raise RequestError(
                f"{num_prompt} prompt tokens and up to {max(room, 1)} more{beams} need {format_bytes(needed)} of KV, "
                f"but the budget leaves {format_bytes(held)} ({capacity} tokens{beams}); ask for fewer tokens or raise "
                "the memory budget"
            )
        return room
