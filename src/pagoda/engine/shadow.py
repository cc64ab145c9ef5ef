"""Live quality: a share of the lossy requests is run again exactly, when nobody waits, and the two are compared.

While a chosen request is answered, what the model thought of each token is noted: its likeliest tokens and their
log-probabilities, before sampling. Later the same tokens are forced through the exact cache (the engine's own KV
format), and at each place both distributions are there: whether their first choices agree, and their KL divergence.
Shadows give way: a request that comes in ends the one that runs, which starts again when the engine is idle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..kv.grammar import parse_policy
from ..sampling.params import SamplingParams
from .config import check_share
from .request import Request

PREFIX = "shadow:"
TOP, MAX_TOKENS, MAX_PENDING = 32, 256, 16
"""Likeliest tokens noted at a place, places noted of a request, requests that may wait to be compared: 2 MiB in all."""
MAX_SPELLED = 64
"""Policies that are counted with their parameters: clients may write any, and metrics keep each for good."""


@dataclass(slots=True)
class Agreement:
    """Of one policy, so far. ``kl_sum``: nats, exact against lossy, added up over ``tokens``."""

    requests: int = 0
    tokens: int = 0
    agreed: int = 0
    kl_sum: float = 0.0


@dataclass(slots=True)
class Note:
    """What a lossy run thought: at each place the likeliest tokens, int64 ids and float32 log-probabilities."""

    request: Request
    policy: str
    places: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    found: Agreement = field(default_factory=Agreement)

    def see(self, num_output: int, logits: Tensor) -> None:
        """A place of the lossy run. Places that a preempted sequence comes to twice are noted once."""
        if num_output == len(self.places) < MAX_TOKENS:
            best = logits.float().log_softmax(-1).topk(min(TOP, logits.shape[-1]))
            self.places.append((best.indices.cpu(), best.values.cpu()))

    def teach(self, num_output: int, logits: Tensor) -> int:
        """The same place of the exact run: compares, and says which token comes next."""
        if num_output < len(self.forced):
            ids, theirs = self.places[num_output]
            exact = logits.float().log_softmax(-1).cpu()
            self.found.tokens += 1
            self.found.agreed += int(exact.argmax()) == int(ids[0])
            self.found.kl_sum += divergence(exact[ids], theirs)
        return self.forced[min(num_output, len(self.forced) - 1)]


def divergence(exact: Tensor, lossy: Tensor) -> float:
    """KL(exact || lossy) in nats over the noted tokens and one bucket for all others: never above the true one."""
    p, q = (_with_rest(x.double()) for x in (exact, lossy))
    return max(0.0, float((p * (p / q).log()).sum()))


def _with_rest(log_probs: Tensor) -> Tensor:
    probs = log_probs.exp()
    rest = (1.0 - probs.sum()).clamp(min=1e-9)
    return torch.cat([probs.clamp(min=1e-12), rest[None]])


class Shadows:
    """Chooses, waits, counts. ``share`` of the requests with a lossy policy (one answer, no beams, generated)."""

    def __init__(self, share: float) -> None:
        check_share(share)
        self._share, self._owed = share, 0.0
        self._watched: dict[str, Note] = {}
        self._pending: deque[Note] = deque()
        self._running: Note | None = None
        self._found: dict[str, Agreement] = {}
        self.num_skipped = 0

    @property
    def has_pending(self) -> bool:
        """Whether something waits to be compared."""
        return bool(self._pending)

    @property
    def is_busy(self) -> bool:
        """Whether something waits to be compared, or is being compared."""
        return bool(self._pending) or self._running is not None

    def watch(self, request: Request) -> None:
        """A request was accepted: it may be chosen. Every ``1 / share``-th is, beginning with a whole interval."""
        params = request.params
        single = params.n == 1 and params.best_of in (None, 1) and params.beam_width is None
        if not self._share or request.policy.exact or not single or request.pooling is not None or request.teacher:
            return
        self._owed += self._share
        if self._owed >= 1.0 - 1e-9:
            self._owed -= 1.0
            note = self._watched[request.request_id] = Note(request, self._counted_as(request))
            request.observer = note.see

    def _counted_as(self, request: Request) -> str:
        """The policy as it was written; by its names alone where too many have been counted already."""
        spelled = request.policy.spelled
        known = spelled in self._found or len(self._found) < MAX_SPELLED
        return spelled if known else "+".join(request.policy.names)

    def ended(self, request_id: str, output_ids: list[int], *, ok: bool) -> None:
        """A request ended. One that was chosen waits for its exact twin from here on, unless it failed."""
        note = self._watched.pop(request_id, None)
        if note is None:
            return
        note.forced = output_ids[: len(note.places)]
        if not ok or not note.forced or len(self._pending) >= MAX_PENDING:
            self.num_skipped += 1
            return
        note.request.observer = None
        self._pending.append(note)

    def next(self, now: float) -> Request:
        """The exact twin of the request that waited longest."""
        note = self._running = self._pending.popleft()
        note.found = Agreement(requests=1)
        params = SamplingParams(temperature=0, max_tokens=len(note.forced), ignore_eos=True)
        return Request(
            request_id=PREFIX + note.request.request_id,
            prompt=None,
            prompt_ids=note.request.prompt_ids,
            params=params,
            policy=parse_policy("exact"),
            seed=0,
            arrival=now,
            salt=note.request.salt,
            teacher=note.teach,
        )

    def give_way(self) -> str | None:
        """The id of the twin that runs, which waits again; None if none runs."""
        note, self._running = self._running, None
        if note is None:
            return None
        self._pending.appendleft(note)
        return PREFIX + note.request.request_id

    def settle(self, *, ok: bool) -> None:
        """The twin that ran has ended."""
        note, self._running = self._running, None
        if note is None:
            return
        if not ok:
            self.num_skipped += 1
            return
        total = self._found.setdefault(note.policy, Agreement())
        for name, value in asdict(note.found).items():
            setattr(total, name, getattr(total, name) + value)

    def stats(self) -> dict[str, Any]:
        """Plain data: ``policies`` (requests, tokens, agreed, kl_sum of each), ``pending``, ``skipped``."""
        return {
            "policies": {name: asdict(found) for name, found in self._found.items()},
            "pending": len(self._pending),
            "skipped": self.num_skipped,
        }
