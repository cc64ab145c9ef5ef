"""Whether a request may come in now: the bounded queue of the server, and the limits of each key.

A request enters before anything is spent on it (tokenization included) and leaves when its answer has ended. Decisions
are plain arithmetic in the event loop's thread; no locks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .config import ServerConfig
from .errors import ApiError
from .keys import Caller


@dataclass(slots=True)
class Tenant:
    """What one key has under way. ``tokens`` is what it may still spend: it refills with time, up to one minute's."""

    running: int = 0
    kv_bytes: int = 0
    tokens: float = 0.0
    refilled_at: float = 0.0
    spent_tokens: int = 0


@dataclass(slots=True)
class Ticket:
    """One HTTP request inside the gate, worth ``num_requests`` of the engine's."""

    gate: Gate
    caller: Caller
    num_requests: int
    kv_bytes: int = 0
    _left: bool = field(default=False)

    def reserve_kv(self, num_bytes: int) -> None:
        """Before the engine sees it: the most KV that the answer may come to hold. Raises ApiError (429, or 400)."""
        self.gate.reserve_kv(self, num_bytes)

    def spend(self, num_tokens: int) -> None:
        """Prompt and answer tokens that were computed for it."""
        self.gate.spend(self.caller, num_tokens)

    def leave(self) -> None:
        """The answer has ended. A second call does nothing."""
        if not self._left:
            self._left = True
            self.gate.leave(self)


class Gate:
    """``capacity``: requests that may be inside at once, running or waiting."""

    def __init__(self, config: ServerConfig, capacity: int, now: Callable[[], float]) -> None:
        self.config, self.capacity, self._now = config, capacity, now
        self.inside = 0
        self.tenants: dict[str, Tenant] = {}
        self._seconds_each = 1.0  # between two requests that leave, smoothed
        self._last_left = now()

    def enter(self, caller: Caller, num_requests: int = 1) -> Ticket:
        """Raises ApiError: 429 with Retry-After where the queue or the key's limit is full."""
        if num_requests > self.capacity:
            raise ApiError(
                400, f"{num_requests} prompts in one request, but at most {self.capacity} fit; send fewer",
                param="prompt",
            )  # fmt: skip
        tenant = self._tenant(caller)
        self._check_rate(tenant)
        most = self.config.max_concurrent_per_key
        if most is not None and tenant.running + num_requests > most:
            raise ApiError(
                429, f"this key has {tenant.running} requests under way and may have {most}; wait for one to end",
                code="concurrency_limit", retry_after=self._seconds_each,
            )  # fmt: skip
        if self.inside + num_requests > self.capacity:
            raise ApiError(
                429, f"the queue is full: {self.inside} requests run or wait; try again later", code="queue_full",
                retry_after=min(60.0, self._seconds_each * num_requests),
            )  # fmt: skip
        self.inside += num_requests
        tenant.running += num_requests
        return Ticket(self, caller, num_requests)

    def reserve_kv(self, ticket: Ticket, num_bytes: int) -> None:
        most, tenant = self.config.kv_bytes_per_key, self._tenant(ticket.caller)
        if most is not None:
            if num_bytes > most:
                raise ApiError(
                    400, f"prompt and answer may take {num_bytes} bytes of KV and this key may hold {most}; ask for "
                    "fewer tokens", code="kv_limit",
                )  # fmt: skip
            if tenant.kv_bytes + num_bytes > most:
                raise ApiError(
                    429, f"this key's requests may take {tenant.kv_bytes} of its {most} bytes of KV; wait for one to "
                    "end", code="kv_limit", retry_after=self._seconds_each,
                )  # fmt: skip
        ticket.kv_bytes += num_bytes
        tenant.kv_bytes += num_bytes

    def spend(self, caller: Caller, num_tokens: int) -> None:
        tenant = self._tenant(caller)
        tenant.spent_tokens += num_tokens
        if self.config.tokens_per_minute_per_key is not None:
            tenant.tokens -= num_tokens

    def leave(self, ticket: Ticket) -> None:
        tenant = self._tenant(ticket.caller)
        self.inside -= ticket.num_requests
        tenant.running -= ticket.num_requests
        tenant.kv_bytes -= ticket.kv_bytes
        now = self._now()
        self._seconds_each += 0.1 * (min(now - self._last_left, 10.0) - self._seconds_each)
        self._last_left = now

    def _tenant(self, caller: Caller) -> Tenant:
        tenant = self.tenants.get(caller.name)
        if tenant is None:
            start = float(self.config.tokens_per_minute_per_key or 0)
            tenant = self.tenants[caller.name] = Tenant(tokens=start, refilled_at=self._now())
        return tenant

    def _check_rate(self, tenant: Tenant) -> None:
        """A key with nothing left waits. What an answer costs is known afterwards, so the balance may fall below 0."""
        limit = self.config.tokens_per_minute_per_key
        if limit is None:
            return
        now, per_second = self._now(), limit / 60
        tenant.tokens = min(float(limit), tenant.tokens + (now - tenant.refilled_at) * per_second)
        tenant.refilled_at = now
        if tenant.tokens <= 0:
            raise ApiError(
                429, f"this key has used its {limit} tokens per minute; wait", code="token_limit",
                retry_after=(1 - tenant.tokens) / per_second,
            )  # fmt: skip
