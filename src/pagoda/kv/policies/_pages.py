"""What a page selection is shown, and what all of them share: a budget in pages and the pages that are always read.

A method says how it judges pages in one of two ways. With a `PageRule` the kernels score its marks: within the program
of a step, or layer by layer with the same result (``score`` as it stands here). Or it writes a ``score`` of its own,
and is asked between layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._budget import at_least
from .base import Selection, said_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from ...kernels.ops.page_marks import MarkAids
    from ...kernels.ops.page_scores import KeyPages, PageRule

    Counts = npt.NDArray[np.int64]

BFLOAT16, FLOAT32 = 2, 4
SCORED = "scored"
"""In a layer's memory once there are scores that may be used again."""


def byte_marks(page_size: int, dim: int) -> float:
    """Bytes of a page's marks of bytes (`PageRule`): whole words, and a byte of each slot's scale."""
    return page_size * (-(-dim // 4) * 4 + 1)


@dataclass
class Look:
    """One decode step of one sequence in one layer. H kv-heads, G query heads each, P full pages of the longest.

    queries    float32 [H, G, D]       sketches  [H, P, …]: what the policy noted of each full page
    valid      bool [H, P]             scale     of the products
    held       full pages of each head
    keys       where the keys are;     read_keys  () -> float32 [H, P, page_size, D]: them, for a score of one's own
    memory     the policy's own notes for this sequence and layer; ``below``: those of the layer below
    position   number of the newest token, whose query this is
    learned    what the method was calibrated to, ``[H, …]`` of this layer (with ``Need.CALIBRATION``)
    """

    layer: int
    queries: Tensor
    sketches: Tensor
    valid: Tensor
    scale: float
    read_keys: Callable[[], Tensor]
    held: list[int]
    keys: KeyPages | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    below: Mapping[str, Tensor] = field(default_factory=dict)
    position: int = 0
    learned: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PageSelection(Selection):
    """``pages``: full pages that a head reads in a decode step (a whole number), or a share of them (a fraction). The
    page under way and the one before it, the newest tokens, are always read; the latter counts.

    ``reuse``: steps that one scoring serves; pages that came since count 0. Most papers score in every step (1); LServe
    (section 3.6) does so every few. Sequences score at positions that it divides, each in a step of its own, therefore.
    """

    whole: ClassVar[str] = ""
    """Why it cannot follow an eviction ("" where it can): heads then hold different tokens in the same page."""
    moves: ClassVar[bool] = False
    """Whether what is read gets positions side by side (``moved``), so that it is read from copies."""
    remote: ClassVar[bool] = False
    """Whether sketches say all: each is made of its own page of its own head alone (and of where that stands, and what
    was calibrated), and a step looks at no other keys than those that it reads. Only then pages may lie in a lower
    tier, and be noted before they go there."""
    marked: ClassVar[bool] = False
    """Whether pages after the first look at a text are noted as `page_marks` notes them, which is what ``sketch`` then
    makes of one page. A class that changes the sketches says so again."""
    keeps_first: ClassVar[bool] = False
    """Whether the first page is always read (and counts)."""
    pages: int | float = 0.25
    reuse: int = 1

    def __post_init__(self) -> None:
        whole = isinstance(self.pages, int) and self.pages >= 1
        part = isinstance(self.pages, float) and 0.0 < self.pages <= 1.0
        if not whole and not part:
            raise ConfigError(f"pages={self.pages!r}; give pages per head (from 1) or a share (0.0 < pages <= 1.0)")
        at_least("reuse", self.reuse, 1)

    def moved(self, keys: Tensor, gaps: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Keys float32 [H, K, page_size, D] of what a step reads, each page ``gaps`` [H, K] positions further on."""
        return keys

    def turns(self, num: int, page_size: int, learned: Mapping[str, Tensor]) -> Tensor:
        """float32 [L, num, D] by which keys are turned that move by 0 … num - 1 pages: cosines, then sines. What
        ``moved`` does, for the kernels.
        """
        raise AssertionError(f"{type(self).__name__} moves no keys by its rule")

    # -- how many ------------------------------------------------------------------------------------------------------

    def num_pages(self, full: int) -> int:
        """Pages to read of ``full`` ones."""
        wanted = self.pages if isinstance(self.pages, int) else max(1, round(self.pages * full))
        return min(int(wanted), full)

    def counts(self, full: Counts, learned: Mapping[str, Tensor]) -> Counts:
        """int64 [L, H]: pages that each head reads of its ``full`` ones; ``learned`` ``[L, H, …]``."""
        import numpy as np

        one = int(full.flat[0])
        if (full == one).all():
            return np.full(full.shape, self.num_pages(one), np.int64)
        sizes, which = np.unique(full, return_inverse=True)
        return np.array([self.num_pages(int(size)) for size in sizes], np.int64)[which].reshape(full.shape)

    @cached_property
    def counts_alike(self) -> bool:
        """Whether heads that hold as many pages read as many: what ``counts`` says as it stands here."""
        return type(self).counts is PageSelection.counts

    def looks(self, learned: Mapping[str, Tensor]) -> Tensor | None:
        """bool [L, H] (or [H]): heads that score; the others take the scores of the same head one layer below. None:
        every head scores for itself.
        """
        return None

    # -- what is noted of a page ---------------------------------------------------------------------------------------

    def mark_bytes(self, page_size: int, dim: int) -> float:
        """Bytes noted of a page (and of all of them, shared out among the pages)."""
        return 0

    def looked_bytes(self, page_size: int, dim: int) -> float:
        """Of them, what is looked at to score: all, as it stands here."""
        return self.mark_bytes(page_size, dim)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """What is noted of pages when they are full: keys float32 [H, n, page_size, D] -> [H, n, …], the rule's marks
        where there is a rule. Nothing, as it stands here.
        """
        return keys[..., :0, 0]

    def sketch_as(self, keys: Tensor, memory: dict[str, Tensor], first: int, learned: Mapping[str, Tensor]) -> Tensor:
        """``sketch`` for methods that want to know which page of the head is the ``first``, or were calibrated."""
        return self.sketch(keys, memory)

    @cached_property
    def is_marked(self) -> bool:
        """``marked``, of the class that makes the sketches; pages judged by their keys have no marks to be made."""
        if self.judged_by is None:
            return False
        said = said_of(type(self), "marked", {"sketch", "sketch_as", "rule"})
        return self.judged_by.marks == "keys" if said is None else bool(said)

    def mark_aids(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> MarkAids:
        """What `page_marks` is given in a layer beside keys, ``given`` among it, the same from step to step."""
        from ...kernels.ops.page_marks import MarkAids

        return MarkAids(self.given(memory, learned))

    # -- how pages are judged ------------------------------------------------------------------------------------------

    def rule(self) -> PageRule | None:
        """How the kernels judge pages; None: ``score`` does, in a way of its own."""
        return None

    @cached_property
    def judged_by(self) -> PageRule | None:
        """``rule()``, made once."""
        return self.rule()

    def given(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> Tensor | None:
        """What the rule is given in a layer (`PageRule`): [H, …], contiguous, the same tensor from step to step."""
        return None

    def turn(self, position: int | Tensor, learned: Mapping[str, Tensor]) -> Tensor | None:
        """float32 [L, D] (or [D]) by which a query at ``position`` is turned: cosines, then sines; [n, L, D] for
        positions [n, 1, 1].
        """
        return None

    def num_outliers(self, full: int) -> int:
        """Pages of ``full`` ones that go before all others (`page_scores`)."""
        return 0

    @property
    def likeness(self) -> float:
        """Cosine to the layer's query that last scored, above which its scores serve; 0: every query scores."""
        return 0.0

    @property
    def persists(self) -> float:
        """Share of the last step's scores that is added, of a method whose heads vote: all of a layer read the same.
        Below 0: they do not.
        """
        return -1.0

    def scores(self, look: Look) -> Tensor:
        """``score``, or what it was last where that still serves (``reuse``)."""
        memory, (heads, pages) = look.memory, look.valid.shape
        if self.reuse == 1:
            return self.score(look)
        if look.position % self.reuse and SCORED in memory:
            return self._last(memory, heads, pages, look.valid.device)
        found = self.score(look)
        memory[SCORED] = look.queries.new_empty(0)
        if self.persists < 0:
            kept(memory, "scores", (heads,), pages, found.device)[:, :pages] = found
        return found

    def score(self, look: Look) -> Tensor:
        """float32 [H, P]: the higher, the sooner a page is read."""
        from ...kernels.ops import page_scores

        rule, memory, (heads, pages) = self.judged_by, look.memory, look.valid.shape
        assert rule is not None, f"{type(self).__name__} has neither a rule nor a score"
        if self.likeness > 0 and self._is_alike(look):
            return self._last(memory, heads, pages, look.valid.device)
        found = page_scores(
            look.queries,
            rule,
            None if rule.marks == "keys" else look.sketches,
            look.held,
            scale=look.scale,
            given=self.given(memory, look.learned),
            turn=self.turn(look.position, look.learned),
            outliers=self.num_outliers(pages),
            keys=look.keys,
        )
        if self.persists >= 0:
            votes = kept(memory, "votes", (), pages, found.device)
            votes *= self.persists
            for one in found:
                votes[:pages] += one
            return self._last(memory, heads, pages, found.device)
        looks = self.looks(look.learned)
        if looks is not None:
            below = look.below["scores"][:, :pages] if look.below else found.new_zeros(())
            found = found.where(looks[:, None].to(found.device), below)
        if looks is not None or self.likeness > 0:
            kept(memory, "scores", (heads,), pages, found.device)[:, :pages] = found
        return found

    def _last(self, memory: dict[str, Tensor], heads: int, pages: int, device: torch.device) -> Tensor:
        """float32 [H, P]: scores that are kept."""
        if self.persists >= 0:
            return kept(memory, "votes", (), pages, device)[:pages].expand(heads, pages).clone()
        return kept(memory, "scores", (heads,), pages, device)[:, :pages].clone()

    def _is_alike(self, look: Look) -> bool:
        """Whether the query is so like the one that last scored that its scores serve; else it is the last one now."""
        query = look.queries.flatten().double()
        last = look.memory.setdefault("query", look.queries.new_zeros(query.shape)).double()
        if float(query @ last) > self.likeness * float(query.norm() * last.norm()) > 0:
            return True
        look.memory["query"].copy_(query)
        return False


def kept(
    memory: dict[str, Tensor], name: str, rows: tuple[int, ...], pages: int, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 [*rows, at least ``pages``] in a policy's notes: what is not known yet is 0."""
    import torch

    held = memory.get(name)
    if held is None or held.shape[-1] < pages:
        grown = torch.zeros(*rows, pages + pages // 4 + 4, device=device)
        if held is not None:
            grown[..., : held.shape[-1]] = held
        memory[name] = held = grown
    return held
