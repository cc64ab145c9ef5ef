"""DuoAttention: retrieval heads, found by optimization, keep everything; streaming heads keep sinks and a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._heads import SplitHeads


@dataclass(frozen=True)
class DuoAttention(SplitHeads):
    """Gates come from ``pagoda calibrate duo_attention MODEL``: a mix of full and streaming attention in every head is
    trained to reproduce the full model on synthetic recall under an L1 penalty (section 2.2).

    Deviation: the prompt is computed with full attention and compressed at its end; the paper streams in prefill too.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.10819"


POLICY = DuoAttention
