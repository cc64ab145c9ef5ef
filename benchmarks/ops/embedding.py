"""Rows of a packed embedding, which serves as output matrix too, beside torch's look-up in a bfloat16 table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from pagoda.weights.filling import pack_matrix
from pagoda.weights.quantization import parse_format

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

TOKENS, ROUNDS = (1, 32, 1024), 15


def rows(shape: tuple[int, int], formats: list[str], clock: str = "wall") -> Iterator[Measured]:
    """Tables ``[vocabulary, width]``; other tokens in every round."""
    vocab, width = shape
    table = torch.randn(vocab, width).bfloat16()
    for format in formats:
        packed = pack_matrix(parse_format(format), table.float(), torch.bfloat16)
        for tokens in TOKENS:
            ids = torch.randint(vocab, (ROUNDS + 2, tokens))
            ways = {
                "pagoda": lambda number, ids=ids, packed=packed: packed.rows(ids[number % len(ids)]),
                "torch": lambda number, ids=ids: functional.embedding(ids[number % len(ids)], table),
                REFERENCE: lambda number, ids=ids, matrix=packed.packed: plain("packed_embedding")(
                    ids[number % len(ids)], matrix, torch.bfloat16
                ),
            }
            moved = tokens * (packed.nbytes // vocab + 2 * width)
            yield Measured({"format": format, "tokens": tokens}, in_turn(ways, ROUNDS, clock), moved)
