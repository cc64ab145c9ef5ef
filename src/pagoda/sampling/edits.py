"""Steps 1 to 5 for a batch: bias, minimum length, penalties, structure, closing, written into the logits they touch.

Sparse on purpose: a row without any of them costs nothing, a row with penalties costs its distinct tokens, and only a
structured row costs [V].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .masks import forbid_outside
from .state import SampleState


def apply_edits(logits: Tensor, states: Sequence[SampleState]) -> None:
    """Changes logits [N, V] float32 in place, row i as states[i] says."""
    if not any(state.is_edited for state in states):
        return
    _add_bias(logits, states)
    _forbid_ends(logits, states)
    _penalize(logits, states)
    forbid_outside(logits, states)
    _force(logits, states)


def _force(logits: Tensor, states: Sequence[SampleState]) -> None:
    for row, state in enumerate(states):
        token_id = state.forced
        if token_id is not None:
            logits[row] = -math.inf
            logits[row, token_id] = 0.0


def _add_bias(logits: Tensor, states: Sequence[SampleState]) -> None:
    biased = [(row, state.params.logit_bias) for row, state in enumerate(states) if state.params.logit_bias]
    if not biased:
        return
    cells = [(row, token_id, value) for row, bias in biased for token_id, value in (bias or {}).items()]
    rows, ids = _index([c[0] for c in cells], logits), _index([c[1] for c in cells], logits)
    logits[rows, ids] += torch.tensor([c[2] for c in cells], dtype=logits.dtype, device=logits.device)


def _forbid_ends(logits: Tensor, states: Sequence[SampleState]) -> None:
    cells = [(row, end) for row, state in enumerate(states) if state.forbids_ending for end in state.end_ids]
    if cells:
        logits[_index([c[0] for c in cells], logits), _index([c[1] for c in cells], logits)] = -math.inf


def _penalize(logits: Tensor, states: Sequence[SampleState]) -> None:
    """One gather and one scatter over the distinct tokens of all rows that have penalties."""
    rows, ids, counts, sizes, penalties = [], [], [], [], []
    for row, state in enumerate(states):
        touched = state.penalized()
        if touched is not None and len(touched[0]):
            rows.append(row)
            ids.append(touched[0])
            counts.append(touched[1])
            sizes.append(len(touched[0]))
            params = state.params
            penalties.append((params.repetition_penalty, params.frequency_penalty, params.presence_penalty))
    if not rows:
        return
    row_index = _index(np.repeat(np.array(rows, dtype=np.int64), sizes), logits)
    id_index = _index(np.concatenate(ids), logits)
    count = torch.from_numpy(np.concatenate(counts)).to(logits.device)
    per_cell = np.repeat(np.array(penalties, dtype=np.float32), sizes, axis=0).T.copy()
    repetition, frequency, presence = torch.from_numpy(per_cell).to(logits.device)
    values = logits[row_index, id_index]
    values = torch.where(values < 0, values * repetition, values / repetition)
    logits[row_index, id_index] = values - (frequency * count + presence * (count > 0))


def _index(values: Sequence[int] | np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64).to(like.device)
