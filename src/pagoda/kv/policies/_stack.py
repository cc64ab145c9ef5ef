"""The policies of one request, joined by ``+`` and checked: the one thing that the engine asks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ...core.types import Granularity
from ._pages import PageSelection
from ._scored import Once, Scored
from ._windowed import WindowedCodec
from .base import (
    Allocator,
    Choice,
    Decision,
    Eviction,
    Held,
    KVPolicy,
    Need,
    Ranking,
    Selection,
    Stage,
    Stored,
)

if TYPE_CHECKING:
    from ._inputs import Inputs
    from ._layers import LossyLayers, Reach

LOOKS = frozenset({Need.QUERIES, Need.RECEIVED, Need.WANTED})
"""What is about the newest queries."""

ORDER = (Stage.EVICTION, Stage.ALLOCATOR, Stage.CODEC, Stage.SELECTION, Stage.TIER)


@dataclass(frozen=True)
class PolicyStack:
    """What a request's ``kv=`` came to. ``names`` without parameters, ``spelled`` with those that were given.
    ``lossy``: layers that lose slots, or are read in part, where a model's others must not. ``reach``: what windows
    leave of layers that have some, whatever is asked.
    """

    names: tuple[str, ...] = ("exact",)
    spelled: str = "exact"
    eviction: Eviction | None = None
    allocator: Allocator | None = None
    selection: Selection | None = None
    codec: Stored | WindowedCodec | None = None
    offload: bool = False
    lossy: LossyLayers | None = None
    reach: Reach | None = None

    @classmethod
    def join(cls, named: list[tuple[str, KVPolicy]], spelled: str = "") -> PolicyStack:
        """Raises ConfigError for a combination that makes no sense, with the reason."""
        found: dict[Stage, tuple[str, KVPolicy]] = {}
        last = -1
        for name, policy in named:
            if policy.stage is Stage.EXACT:
                if len(named) > 1:
                    raise ConfigError(
                        f"{'+'.join(other for other, _ in named)}: {name} keeps all as it is, so there is nothing to "
                        f"join; leave {name} away"
                    )
                continue
            if policy.stage in found:
                raise ConfigError(f"{found[policy.stage][0]}+{name}: {_TWICE[policy.stage]}; name one of them")
            if ORDER.index(policy.stage) < last:
                raise ConfigError(f"{name} ({policy.stage}) must come first; the order is {' + '.join(ORDER)}")
            last, found[policy.stage] = ORDER.index(policy.stage), (name, policy)
        stack = cls(
            names=tuple(name for name, policy in named if policy.stage is not Stage.EXACT) or ("exact",),
            spelled=spelled or "+".join(name for name, _ in named),
            eviction=found.get(Stage.EVICTION, (None, None))[1],  # type: ignore[arg-type]
            allocator=found.get(Stage.ALLOCATOR, (None, None))[1],  # type: ignore[arg-type]
            selection=found.get(Stage.SELECTION, (None, None))[1],  # type: ignore[arg-type]
            codec=found.get(Stage.CODEC, (None, None))[1],  # type: ignore[arg-type]
            offload=Stage.TIER in found,
        )
        stack._check()
        return stack

    def _check(self) -> None:
        self._check_offload()
        if self.selection is not None and Need.PROBS in self.needs:
            raise ConfigError(
                f"{self.names[0]} adds up the attention of every query, and {self.names[-1]} leaves pages unread; "
                "choose a method that looks at recent queries, such as snapkv"
            )
        if isinstance(self.selection, PageSelection) and self.selection.whole and self.eviction is not None:
            raise ConfigError(
                f"{self.names[-1]} cannot follow {self.names[0]}: {self.selection.whole}; choose a selection that "
                "judges each head's pages alone, such as quest"
            )
        self._check_windowed()
        if self.allocator is None:
            return
        name = self.names[0]
        if self.eviction is None:
            raise ConfigError(
                f"{name} divides the budget of an eviction and has none here; write for example snapkv+{name}"
            )
        if not isinstance(self.eviction, Scored):
            raise ConfigError(
                f"{name} ranks no slots, so {self.names[1]} has no scores to divide its budget by; choose an eviction "
                f"that does, such as snapkv+{self.names[1]}"
            )
        if self.eviction.granularity is not Granularity.HEAD:
            raise ConfigError(
                f"{name} keeps the same slots in every head, so {self.names[1]} cannot divide its budget; choose an "
                f"eviction whose heads choose for themselves, such as snapkv+{self.names[1]}"
            )
        if self.eviction.allots:
            raise ConfigError(f"{name} divides its budget itself; leave {self.names[1]} away")

    def _check_offload(self) -> None:
        if not self.offload:
            return
        if self.eviction is not None:
            raise ConfigError(
                f"{'+'.join(self.names)}: {self.names[0]} moves slots about, which pages in a lower tier are too far "
                "away for; evict or offload, or choose what is read: quest+offload"
            )
        if self.codec is not None:
            raise ConfigError(
                f"{'+'.join(self.names)}: offloaded pages are of the engine's own format; leave {self.names[0]} away, "
                "or start with it as kv_cache_dtype"
            )
        if isinstance(self.selection, PageSelection) and not self.selection.remote:
            raise ConfigError(
                f"{'+'.join(self.names)}: {self.names[0]} does not judge each page by notes of that page alone: keys "
                "of pages that it does not read would have to come from the lower tier; accepted before offload: "
                f"{', '.join(_remote())}"
            )

    def _check_windowed(self) -> None:
        """Pages that are encoded whole hold the same slots of every head, and are not opened again."""
        if self.windowed is None or self.keeps_all:
            return
        why = None
        if self.selection is not None:
            why = f"{self.names[-1]} judges pages by keys that it would have to decode first"
        elif self.windowed.alone:
            why = self.windowed.alone
        elif not isinstance(self.eviction, Once) or Need.PROBS in self.eviction.needs:
            why = (
                f"{self.names[0]} drops slots again and again; a method that compresses the prompt once, as snapkv, can"
            )
        elif self.allocator is not None or (isinstance(self.eviction, Scored) and self.eviction.allots):
            why = f"{self.names[-2]} gives heads different numbers of slots"
        if why is not None:
            raise ConfigError(
                f"{'+'.join(self.names)}: {self.windowed.method} encodes whole pages of all heads, and {why}; "
                "int4 is a codec of single slots"
            )

    @property
    def chooses_by(self) -> str:
        """The selection's name; what comes after it is where pages lie."""
        assert self.selection is not None
        return self.names[-2] if self.offload else self.names[-1]

    @property
    def exact(self) -> bool:
        """Whether nothing is lost."""
        return self.keeps_all and self.codec is None

    @property
    def windowed(self) -> WindowedCodec | None:
        """The codec, if it leaves a window of raw tokens beside the pages."""
        return self.codec if isinstance(self.codec, WindowedCodec) else None

    @cached_property
    def encodes_within(self) -> bool:
        """Whether pages are encoded within steps, layer by layer, so that chunks need not end there."""
        return self.windowed is not None and self.windowed.plain and self.keeps_all

    @cached_property
    def weighs(self) -> bool:
        """Whether slots may count more than once. Where pages are chosen, weights would have to follow the choice."""
        return self.eviction is not None and self.eviction.weighs and self.selection is None

    @property
    def leaves_residual(self) -> bool:
        """Whether attention gets an answer of the evicted beside that of the slots."""
        return self.eviction is not None and self.eviction.leaves_residual

    @property
    def remembers(self) -> bool:
        """Whether a sequence has a state of its own beside its pages."""
        looks = self.eviction is not None and bool(self.eviction.needs or self.eviction.tracks)
        return looks or self.selection is not None or self.windowed is not None

    @property
    def keeps_all(self) -> bool:
        """Whether every slot stays and is read, so that what is in the pages depends on the tokens alone."""
        return self.eviction is None and self.selection is None

    @cached_property
    def in_every_step(self) -> bool:
        """Whether steps have to do with it also where no act is near: it chooses what is read, or answers for slots
        that are gone.
        """
        return self.selection is not None or self.leaves_residual

    @property
    def granularity(self) -> Granularity:
        """Rows that the sequence's page table needs."""
        granularity = Granularity.SEQUENCE if self.eviction is None else self.eviction.granularity
        apart = self.eviction is not None and self.lossy is not None
        return Granularity.LAYER if apart and granularity is Granularity.SEQUENCE else granularity

    @cached_property
    def needs(self) -> frozenset[Need]:
        """Everything that the eviction and the encoding must be shown."""
        eviction = frozenset() if self.eviction is None else self.eviction.needs
        return eviction if self.windowed is None else eviction | self.windowed.needs

    @cached_property
    def learners(self) -> dict[str, KVPolicy]:
        """Its parts that are given what ``pagoda calibrate`` found, by their methods' names."""
        found: dict[str, KVPolicy] = {}
        if self.windowed is not None and self.windowed.calibrated:
            found[self.windowed.method] = self.windowed
        if self.eviction is not None and (self.leaves_residual or Need.CALIBRATION in self.eviction.needs):
            found[self.names[0]] = self.eviction
        if self.selection is not None and Need.CALIBRATION in self.selection.needs:
            found[self.chooses_by] = self.selection
        return found

    @cached_property
    def calibrated(self) -> frozenset[str]:
        """Their names."""
        return frozenset(self.learners)

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of what it is given of the model, and not of one sequence: calibrations by the names of their methods,
        and the pages' format, which may need tables.
        """
        return self.calibrated if self.windowed is None else self.calibrated | {self.windowed.codec}

    @cached_property
    def looks(self) -> bool:
        """Whether the newest queries matter."""
        return bool(LOOKS & self.needs)

    @cached_property
    def window(self) -> int:
        """Newest queries, or hidden states, that are remembered for the next act."""
        looks = self.eviction is not None and (LOOKS | {Need.HIDDEN}) & self.eviction.needs
        evicting = self.eviction.window if self.eviction is not None and looks else 0
        return evicting if self.windowed is None else max(evicting, self.windowed.probes)

    @cached_property
    def sums(self) -> bool:
        """Whether attention can sum up for the next act what slots receive, query by query: nothing else is asked of
        the newest queries, and every slot is read as it lies in pages (not beside them, raw until they are encoded).
        """
        return self.looks and Need.QUERIES not in self.needs and self.selection is None and self.windowed is None

    def next_act(self, num_seen: int, prompt_len: int) -> int | None:
        """As ``Eviction.next_act``; where the eviction has nothing to do any more, when pages are encoded."""
        act = None if self.eviction is None else self.eviction.next_act(num_seen, prompt_len)
        return self.windowed.next_act(num_seen) if act is None and self.windowed is not None else act

    def evicts(self, num_seen: int, prompt_len: int) -> bool:
        """Whether the next act, which there is, is the eviction's."""
        if self.eviction is None:
            return False
        return self.windowed is None or self.eviction.next_act(num_seen, prompt_len) is not None

    def most_slots(self, num_seen: int, prompt_len: int) -> float:
        """As ``Eviction.most_slots``; without eviction every token has its slot, but for what no window reaches."""
        most = num_seen if self.eviction is None else self.eviction.most_slots(num_seen, prompt_len)
        if self.reach is not None:
            return self.reach.mean(most, num_seen, 1)
        return most if self.lossy is None or self.eviction is None else self.lossy.mean(most, num_seen)

    def peak_slots(self, num_seen: int, prompt_len: int, step: int | None = None) -> int:
        """Most slots of a head, on the average, on the way to ``num_seen`` tokens: prompts are whole until an act.
        ``step``: tokens that are computed at a time, at most; None: perhaps all.
        """
        first = None if self.eviction is None else self.next_act(0, prompt_len)
        whole = num_seen if first is None else min(first, num_seen)
        most: float = whole if self.reach is None else self.reach.mean(whole, whole, min(step or whole, whole))
        if first is not None:
            most = max(most, self.most_slots(num_seen, prompt_len))
        return int(-(-most // 1))

    def shareable(self, prompt_len: int) -> int:
        """Tokens of the prompt whose KV may come from the prefix cache: an act must have seen the queries after."""
        if self.windowed is not None:  # whose pages are offered at ``settled`` tokens, if ever
            return prompt_len if self.keeps_all else 0
        first = self.next_act(0, prompt_len)
        if first is None:
            return prompt_len
        if Need.PROBS in self.needs:
            return 0
        return max(0, min(prompt_len, first - max(1, self.window)))

    def ends(self, num_slots: int, prompt_len: int) -> tuple[int, int] | None:
        """As ``Eviction.ends``."""
        return None if self.eviction is None else self.eviction.ends(num_slots, prompt_len)

    def ranks(self, held: Held) -> Ranking | None:
        """As ``Eviction.ranks``; an allocator looks at scores."""
        return None if self.eviction is None or self.allocator is not None else self.eviction.ranks(held)

    def act(self, inputs: Inputs) -> Decision | Choice | None:
        """What the eviction decides, its budget divided by the allocator if there is one."""
        assert self.eviction is not None
        if self.allocator is None:
            return self.eviction.act(inputs)
        assert isinstance(self.eviction, Scored)
        return self.eviction.act(inputs, self.allocator)


def _remote() -> list[str]:
    """Selections that pages of a lower tier can be chosen by."""
    from . import POLICIES

    return [name for name, policy in POLICIES.items() if getattr(policy, "remote", False)]


_TWICE = {
    Stage.EVICTION: "both would drop tokens",
    Stage.ALLOCATOR: "both would divide the budget",
    Stage.CODEC: "a page has one format",
    Stage.SELECTION: "both would choose what is read",
    Stage.TIER: "pages lie in one place",
}
