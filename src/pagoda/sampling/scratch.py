"""How much working memory sampling takes: wide work goes slice of rows by slice of rows, to stay within it. No torch.

Slices are also faster on a CPU: 8 rows of 150 000 logits stay in the cache between two passes over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

_MIB = 2**20
CPU_SLICE_BYTES = 16 * _MIB
DEVICE_SLICE_BYTES = 512 * _MIB
"""An accelerator prefers few large launches."""
MOST_BYTES_PER_LOGIT = 80
"""Of any way through the chain: ranking the whole vocabulary keeps values, ids, masses and masks of every token."""

LOGIT_ROWS = 64
LOGIT_BYTES = 8 * _MIB
"""Logits handled at once beside a step's own: 64 rows, or fewer of a large vocabulary (16 of 128k, where 64 and their
copies took 100 MiB of every budget for the sake of prompt logprobs and drafts).
"""

_TRIE_BYTES_PER_TOKEN = 400
"""Of the vocabulary's trie with the library's slices: measured 385 (GPT-2's 50,257 tokens)."""
_GRAMMARS_BYTES = 8 << 20
"""Compiled grammars and the states of running sequences; a large schema takes 0.5 MB, a state shares most of it."""

Row = TypeVar("Row")


def grammar_bytes(vocab_size: int) -> int:
    """What the trie and the grammars of one model may take."""
    return _GRAMMARS_BYTES + _TRIE_BYTES_PER_TOKEN * vocab_size


def logit_rows(vocab_size: int) -> int:
    """Rows of logits handled at once beside a step's own."""
    return max(1, min(LOGIT_ROWS, LOGIT_BYTES // (4 * vocab_size)))


def slice_bytes(device_type: str) -> int:
    """Working memory that one slice of rows may take."""
    return CPU_SLICE_BYTES if device_type == "cpu" else DEVICE_SLICE_BYTES


def slices(rows: Sequence[Row], bytes_per_row: int, device_type: str) -> Iterator[Sequence[Row]]:
    """The rows in slices that fit the working memory, at least one row in each."""
    step = max(1, slice_bytes(device_type) // max(bytes_per_row, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def scratch_bytes(num_rows: int, vocab_size: int, device_type: str = "cpu", *, with_logprobs: bool = False) -> int:
    """Upper bound of what `Sampler.sample` allocates besides the logits [num_rows, vocab_size] that it is given.

    ``with_logprobs``: rows that report logprobs may be kept as they were before the edits (4 bytes per logit).
    """
    one_slice = max(slice_bytes(device_type), MOST_BYTES_PER_LOGIT * vocab_size)
    return min(one_slice, MOST_BYTES_PER_LOGIT * vocab_size * num_rows) + 4 * num_rows * vocab_size * with_logprobs
