"""Pages that live for one attention call: the table over those of several sequences, heads far apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from ._table import LayerTable


def scratch_table(
    num_heads: int, device: torch.device, rows: Sequence[npt.NDArray[np.int32]], lens: list[int], starts: list[int],
    num_pages: int, wide: torch.Tensor | None = None,
) -> LayerTable:  # fmt: skip
    """Row s holds the pages of sequence s in head 0; those of head h lie ``num_pages`` pages further each. ``lens``:
    slots of each sequence, ``starts``: its first token, and the end; ``wide``: as `LayerTable`.
    """
    width = max(map(len, rows))
    padded = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    row_of = torch.arange(len(rows), dtype=torch.int32, device=device)[:, None].expand(-1, num_heads)
    offset = torch.arange(num_heads, dtype=torch.int32, device=device) * num_pages
    kv_lens = torch.tensor(lens, dtype=torch.int32, device=device)[:, None].expand(-1, num_heads)
    return LayerTable(
        rows=torch.from_numpy(padded).to(device),
        row_of=row_of.contiguous(),
        offset=offset.expand(len(rows), -1).contiguous(),
        kv_lens=kv_lens.contiguous(),
        q_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        q_starts_cpu=starts,
        max_q_len=max(b - a for a, b in pairwise(starts)),
        max_kv_len=max(lens),
        kv_lens_cpu=[[num] * num_heads for num in lens],
        wide=wide,
    )
