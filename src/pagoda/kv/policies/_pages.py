"""What a page selection is shown, and what all of them share: a budget in pages and the pages that are always read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from .base import Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Look:
    """One decode step of one sequence in one layer. H kv-heads, G query heads each, P full pages of the longest.

    queries    float32 [H, G, D]       sketches  float32 [H, P, …]: what the policy noted of each full page
    valid      bool [H, P]             scale     of the products
    read_keys  () -> float32 [H, P, page_size, D]: the keys themselves, for methods that look at (parts of) them
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
    memory: dict[str, Tensor] = field(default_factory=dict)
    below: Mapping[str, Tensor] = field(default_factory=dict)
    position: int = 0
    learned: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PageSelection(Selection):
    """``pages``: full pages that a head reads in a decode step (a whole number), or a share of them (a fraction). The
    page under way and the one before it, the newest tokens, are always read; the latter counts.
    """

    whole: ClassVar[str] = ""
    """Why it cannot follow an eviction ("" where it can): heads then hold different tokens in the same page."""
    moves: ClassVar[bool] = False
    """Whether what is read gets positions side by side (``moved``), so that it is read from copies."""
    remote: ClassVar[bool] = False
    """Whether sketches say all: each is made of its own page of its own head alone, once, and a step looks at no other
    keys than those that it reads. Only then pages may lie in a lower tier, and be noted before they go there."""
    pages: int | float = 0.25

    def moved(self, keys: Tensor, gaps: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Keys float32 [H, K, page_size, D] of what a step reads, each page ``gaps`` [H, K] positions further on."""
        return keys

    def boxes(self, page_size: int) -> int:
        """Boxes around keys (`kernels.ops.box_scores`) that a page's sketch ``[H, n, boxes, 2 D]`` holds, where their
        bounds are the score; 0 where it is something else. With boxes a step is chosen without Python between layers.
        """
        return 0

    @property
    def steps_a_choice(self) -> int:
        """Steps that one scoring serves, of a policy with boxes: ``memory["scores"]`` [H, P], pages that came since
        counting 0, and ``memory["age"]``, steps it has served.
        """
        return 1

    def __post_init__(self) -> None:
        whole = isinstance(self.pages, int) and self.pages >= 1
        part = isinstance(self.pages, float) and 0.0 < self.pages <= 1.0
        if not whole and not part:
            raise ConfigError(f"pages={self.pages!r}; give pages per head (from 1) or a share (0.0 < pages <= 1.0)")

    def num_pages(self, full: int) -> int:
        """Pages to read of ``full`` ones."""
        wanted = self.pages if isinstance(self.pages, int) else max(1, round(self.pages * full))
        return min(int(wanted), full)

    def counts(self, full: Sequence[int], learned: Mapping[str, Tensor], layer: int) -> list[int]:
        """Pages that each head of a layer reads of its ``full`` ones; ``learned`` ``[H, …]`` as in ``Look``."""
        return [self.num_pages(num) for num in full]

    @abstractmethod
    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """What is noted of pages when they are full: keys float32 [H, n, page_size, D] -> [H, n, …]."""

    def sketch_as(self, keys: Tensor, memory: dict[str, Tensor], first: int, learned: Mapping[str, Tensor]) -> Tensor:
        """``sketch`` for methods that want to know which page of the head is the ``first``, or were calibrated."""
        return self.sketch(keys, memory)

    @abstractmethod
    def score(self, look: Look) -> Tensor:
        """float32 [H, P]: the higher, the sooner a page is read."""
