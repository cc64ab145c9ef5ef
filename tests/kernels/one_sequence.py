"""One sequence of a ragged batch, as the arguments of a call of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


def one_sequence(arguments: dict[str, Any], seq: int) -> tuple[dict[str, Any], slice]:
    """Arguments of ``paged_attention`` for sequence ``seq`` alone, and where its tokens are in the batch."""
    table = arguments["table"]
    start, stop = table.q_starts_cpu[seq : seq + 2]
    alone = dataclasses.replace(
        table, row_of=table.row_of[seq : seq + 1], offset=table.offset[seq : seq + 1],
        kv_lens=table.kv_lens[seq : seq + 1], q_starts_cpu=[0, stop - start],
        q_starts=torch.tensor([0, stop - start], dtype=torch.int32),
    )  # fmt: skip
    if (weights := arguments.get("slot_weights")) is not None:
        arguments = arguments | {"slot_weights": weights[seq : seq + 1]}
    return arguments | {"q": arguments["q"][start:stop], "table": alone}, slice(start, stop)
