"""The contract of KV policies: what one needs to see, when it acts, and what it answers.

A policy is a frozen dataclass of its parameters, one file, and the engine does the rest: it shows the policy what it
declared to need, runs it at the tokens that it names, compacts, frees and shares pages, keeps the policy's memory of a
sequence with the sequence, and recomputes a preempted sequence through the same acts, so that it ends in the same
state. A method that ranks slots writes ``score`` and inherits the rest from ``_scored.Scored``.

Stages, in the order in which ``+`` joins them::

    eviction   drops or merges slots                snapkv(budget=0.25)
    allocator  divides an eviction's budget         snapkv(budget=0.25)+pyramid
    codec      stores what stays in fewer bytes     snapkv(budget=0.25)+int8     (a file of kv/codecs)
    selection  keeps all slots, reads some pages    quest(pages=32)
    tier       where the pages lie                  quest(pages=32)+offload
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ...core.types import Granularity

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


WEIGHTS = "log_weights"
"""The name under which a policy keeps how often slots count; see ``Eviction.weighs``."""


class Stage(StrEnum):
    """Where a policy stands in a composition."""

    EXACT = "exact"
    EVICTION = "eviction"
    ALLOCATOR = "allocator"
    CODEC = "codec"
    SELECTION = "selection"
    TIER = "tier"


class Need(StrEnum):
    """What a policy must be shown beside lengths. Each need costs something; nobody pays for what is not declared."""

    PROBS = "probability sums"  # attention that each slot received from every query so far: ``Inputs.mass``
    QUERIES = "recent queries"  # of the last ``window`` tokens: ``LayerInputs.queries`` and ``attention``
    RECEIVED = "recent attention"  # what each slot received from the last ``window`` queries: ``Inputs.received``
    WANTED = "recent choices"  # how many of them gave it at least their mean: ``Inputs.wanted``
    HIDDEN = "hidden states"  # of the last ``window`` tokens, after the last layer: ``Inputs.hidden``
    POSITIONS = "positions"  # token number of each slot: ``Inputs.positions``
    KEYS = "keys"
    VALUES = "values"
    CALIBRATION = "calibration"  # what ``pagoda calibrate METHOD MODEL`` stored beside the model


@dataclass(frozen=True)
class Heads:
    """Those of each layer of a model: how many, and their channels. ``v_dim`` 0: latent KV."""

    num_q_heads: int
    num_kv_heads: int
    k_dim: int
    v_dim: int


class KVPolicy(ABC):
    """What every stage has. ``paper``: where the method comes from; docs/kv-policies.md links it."""

    stage: ClassVar[Stage]
    paper: ClassVar[str] = ""
    exact: ClassVar[bool] = False

    def learned_sizes(self, heads: Heads) -> Mapping[str, tuple[int, ...]]:
        """Of each tensor that it reads of its calibration (``Need.CALIBRATION``), the sizes behind the layers that it
        has for a model of such heads; 0: any. A file of others is refused at admission.
        """
        return {}


@dataclass(slots=True)
class Written:
    """New content for n slots that stay: layers, heads and slots (before the act) int64 ``[n]``, k ``[n, Dk]``,
    v ``[n, Dv]``.
    """

    layers: Tensor
    heads: Tensor
    slots: Tensor
    k: Tensor
    v: Tensor


@dataclass(slots=True)
class Decision:
    """What an eviction does to one sequence.

    keep    bool, in slots before the act: ``[N]`` (granularity sequence), ``[L, N]`` (layer) or ``[L, H, N]`` (head).
    writes  merged content for slots that stay.
    """

    keep: Tensor
    writes: list[Written] = field(default_factory=list)


@dataclass
class Choice:
    """A decision of granularity head that is left to the kernels: which slots are the best, see ``ops.keep_best``. They
    choose and move in one call where nobody shares the pages; ``keep`` is for everybody else.

    lens, budgets  int64 ``[L, H]``: slots held, of which ``num_slots`` are the most, and slots that stay at most
    scores         float32 ``[L, H, num_slots]``; None: newer ones are better
    """

    lens: Tensor
    num_slots: int
    budgets: Tensor
    scores: Tensor | None = None
    sinks: int = 0
    recent: int = 0
    least: float = -math.inf
    pool: int = 1
    writes: list[Written] = field(default_factory=list)

    @cached_property
    def keep(self) -> Tensor:
        """As ``Decision.keep``."""
        from ...kernels.ops import keep_best

        scores = self.scores
        if scores is None:
            scores = self.lens.new_zeros((*self.lens.shape, self.num_slots)).float()
        return keep_best(
            scores, self.lens, self.budgets, sinks=self.sinks, recent=self.recent, least=self.least, pool=self.pool
        )


@dataclass(slots=True)
class Held:
    """What a `Ranking` may depend on, as in `Inputs`; ``heads`` are (L, H), and hold from ``fewest`` to ``most`` slots
    each. ``received()``: None where attention did not sum it up.
    """

    num_seen: int
    prompt_len: int
    fewest: int
    most: int
    heads: tuple[int, int]
    k_dim: int
    memory: dict[str, object]
    calibration: Mapping[str, Tensor] = field(default_factory=dict)
    received: Callable[[], Tensor | None] = lambda: None


class By(IntEnum):
    """What slots are ranked by (the same list as in csrc/acts.hpp): of what attention gave them, ``received``,
    ``wanted`` and ``largest`` as in `Inputs`.
    """

    AGE = 0  # newer is better
    MASS = 1  # mass
    RECEIVED = 2  # received
    COUNTED = 3  # wanted + received / (1 + the most that a slot received)
    WANTED = 4  # received where wanted, else 0
    HASHES = 5  # hash_scores of the track ``hash``
    VOTED = 6  # received from the query heads ``voters`` of a layer, the same for all its heads
    LARGEST = 7  # largest


@dataclass(slots=True)
class Ranking:
    """A `Choice` in the kernels' words: no tensor is made for it.

    budget   slots that stay of each head, or int64 ``[L, H]``
    stem     (n, best): exactly so many of the first n slots stay, the best of them
    planes   as for ``ops.hash_scores``; ``unhashed`` newest slots have no hash yet
    blend    slots that become one, their weighted mean, before the others move
    unvoted  newest slots that count 0 before scores are pooled
    voters   int64 ``[L, n]``, query heads of each layer
    """

    by: By
    budget: int | Tensor
    sinks: int = 0
    recent: int = 0
    least: float = -math.inf
    pool: int = 1
    stem: tuple[int, int] = (0, 0)
    planes: Tensor | None = None
    unhashed: int = 0
    blend: Blend | None = None
    unvoted: int = 0
    voters: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Blend:
    """Of heads ``pairs`` int64 ``[n]`` (numbered through all layers) the ``count`` slots from ``carrier`` on become one
    in its place. It counts ``weight`` already, each of the others 1.
    """

    pairs: Tensor
    carrier: int
    count: int
    weight: int


def said_of(cls: type, name: str, changes: set[str]) -> object | None:
    """The class variable ``name`` as the nearest class says it, or None where a nearer one has any of ``changes``: what
    was said of its parent is not said of it.
    """
    for one in cls.__mro__:
        if name in vars(one):
            said: object = vars(one)[name]
            return said
        if changes & vars(one).keys():
            break
    return None


class Eviction(KVPolicy):
    """Drops slots for good (or merges them into others).

    The answer may depend on nothing but the inputs and what they remember, so that a sequence that was preempted and
    recomputed, forked, or chunked otherwise ends in the same state.
    """

    stage: ClassVar[Stage] = Stage.EVICTION
    granularity: ClassVar[Granularity] = Granularity.HEAD
    needs: ClassVar[frozenset[Need]] = frozenset()
    leaves_residual: ClassVar[bool] = False
    """Whether what is evicted goes on answering queries (``residual``); tokens of the answer come one by one then."""

    @property
    def tracks(self) -> tuple[str, ...]:
        """Names of float32 values that the policy keeps per slot, in ``Inputs.tracks``; they start at 0 and move with
        the slots.
        """
        return ()

    @property
    def weighs(self) -> bool:
        """Whether slots may stand for several tokens, and count as often in the softmax. The logarithms of how often, 0
        for once, are a track by the name `WEIGHTS`; or, where only slots have some that never move, float32 [L, H, n]
        of the first n slots in ``Inputs.memory``, by the same name. Beside a selection of pages every slot counts once.
        """
        return False

    def residual(
        self, q: Tensor, layer: int, memory: Mapping[str, object], learned: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """What the evicted answer one token's queries ``[Hq, Dk]``: the logarithm of their part in the softmax's
        denominator float32 ``[Hq]``, and their mean value ``[Hq, Dv]``; None while there are none.
        """
        return None

    @property
    def window(self) -> int:
        """How many of the newest queries an act is shown, or told of (``Need.QUERIES``, ``RECEIVED``, ``WANTED``), and
        how many of the newest hidden states (``HIDDEN``).
        """
        return 0

    @abstractmethod
    def next_act(self, num_seen: int, prompt_len: int) -> int | None:
        """The first number of tokens above ``num_seen`` at which the policy acts; None when it never does again.

        No chunk of a step reaches past it. Acts before ``prompt_len`` compress during prefill.
        """

    @abstractmethod
    def most_slots(self, num_seen: int, prompt_len: int) -> float:
        """Most slots that a head holds, on the average of all heads, once ``num_seen`` tokens are seen and the acts up
        to there are done. The conformance tests hold every policy to it, the scheduler plans with it.
        """

    def ends(self, num_slots: int, prompt_len: int) -> tuple[int, int] | None:
        """What ``act`` would keep of ``num_slots``, for methods that look at nothing but how many there are
        (granularity sequence, no needs): the first so many, and those from there on. No tensor is made then. None: ask
        ``act``.
        """
        return None

    def ranks(self, held: Held) -> Ranking | None:
        """What ``act`` would choose, for methods whose choice is a `Ranking`. Where it is one, it is made, and
        ``held.memory`` is as after ``act``. None: nothing has changed, ask ``act``.
        """
        return None

    def why_not(self, num_heads: int, longest: int) -> str | None:
        """Why a model of so many query heads a layer, whose sequences have at most ``longest`` tokens, cannot do what
        the parameters ask for, and what to do about it; or None.
        """
        return None

    @abstractmethod
    def act(self, inputs: Inputs) -> Decision | Choice | None:
        """Called when the tokens named by ``next_act`` are computed. None changes nothing."""


class Allocator(KVPolicy):
    """Divides the budget of a scored eviction among layers and heads; the sum stays what it was."""

    stage: ClassVar[Stage] = Stage.ALLOCATOR

    @abstractmethod
    def allot(self, scores: Tensor, lens: Tensor, budget: int) -> Tensor:
        """int64 ``[L, H]`` slots for each head, at most ``L * H * budget`` in all.

        scores  float32 ``[L, H, N]``, -inf where a head has no slot, inf where the method insists.
        lens    int64 ``[L, H]`` slots held.
        """


@dataclass(frozen=True)
class Stored(KVPolicy):
    """All pages of the sequence are of this codec, from its first token on."""

    stage: ClassVar[Stage] = Stage.CODEC
    codec: str


@dataclass(frozen=True)
class Offloaded(KVPolicy):
    """All pages of the sequence lie in the engine's lower tier (`kv.offload`), from its first token on."""

    stage: ClassVar[Stage] = Stage.TIER
    paper: ClassVar[str] = "https://arxiv.org/abs/2502.12574"
    exact: ClassVar[bool] = True


class Selection(KVPolicy):
    """Keeps every slot; in decode steps attention reads only the pages that the policy chooses."""

    stage: ClassVar[Stage] = Stage.SELECTION
    needs: ClassVar[frozenset[Need]] = frozenset()

    @classmethod
    def complete(cls, learned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What it was calibrated to and what follows from it, worked out once for all sequences."""
        return learned

    def why_not(self, page_size: int) -> str | None:
        """Why pages of so many slots cannot be chosen so, and what to do about it; or None."""
        return None
