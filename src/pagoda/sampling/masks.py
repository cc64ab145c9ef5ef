"""Masks of allowed tokens, ahead of time: computed by other threads while the forward pass runs.

    step t          │ schedule │ forward pass ............... │ sample │
    mask threads    │          │ masks of the step's rows │            │

The state after token t-1 is known when step t starts, and the mask for token t depends on nothing else. So the batch is
handed over before the pass, in one call that lets the GIL go, and is there when the sampler asks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .grammar import GrammarState
from .state import SampleState


class MaskAhead:
    """Starts masks. Threads are made with the first structured request."""

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads or min(4, os.cpu_count() or 1)
        self._pool: ThreadPoolExecutor | None = None
        self._executor: object = None
        self.num_masks = 0

    def start(self, states: Sequence[SampleState]) -> None:
        """Begin the masks of those of the sequences that have a grammar and will be sampled in this step."""
        waiting = [state.grammar for state in states if state.grammar is not None and state.grammar.needs_mask]
        if not waiting:
            return
        masks = np.zeros((len(waiting), waiting[0].num_words), dtype=np.uint32)
        done = self._threads().submit(self._fill, waiting, masks)
        for grammar, row in zip(waiting, masks, strict=True):
            grammar.expect(done, row.view(np.uint8))
        self.num_masks += len(waiting)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            import llguidance

            self._pool = ThreadPoolExecutor(1, thread_name_prefix="pagoda-masks")
            self._executor = llguidance.LLExecutor(self._num_threads)
        return self._pool

    def _fill(self, waiting: Sequence[GrammarState], masks: np.ndarray) -> None:
        rows = [(grammar.matcher, row) for row, grammar in enumerate(waiting)]
        self._executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.shape[1] * 4, len(rows))  # type: ignore[attr-defined]


def forbid_outside(logits: Tensor, states: Sequence[SampleState]) -> None:
    """logits [N, V] float32, in place: -inf at every token that row i's grammar does not allow next.

    Rows without a grammar cost nothing. A grammar that failed keeps no token; the sampler reports why.
    """
    for row, state in enumerate(states):
        if state.grammar is None:
            continue
        forbidden = torch.from_numpy(~_allowed(state, logits.shape[1])).to(logits.device)
        logits[row].masked_fill_(forbidden, -math.inf)


def _allowed(state: SampleState, vocab_size: int) -> np.ndarray:
    """bool [V]; tokens beyond the grammar's vocabulary (padding of the logits) are not allowed."""
    assert state.grammar is not None
    allowed = np.zeros(vocab_size, dtype=bool)
    if state.grammar.error is None:
        bits = np.unpackbits(state.grammar.mask(), bitorder="little")[:vocab_size]
        allowed[: len(bits)] = bits
    return allowed
