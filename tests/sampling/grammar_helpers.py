"""Random walks through grammars: every state's mask is obeyed, nothing else is."""

from __future__ import annotations

import random

import numpy as np

from pagoda.models.tokenizer import Tokenizer
from pagoda.sampling.grammar import GrammarCompiler, GrammarState


def compiler(tokenizer: Tokenizer, eos_ids: list[int], **options) -> GrammarCompiler:
    return GrammarCompiler(
        lambda: [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
        eos_ids=eos_ids,
        special_ids=tokenizer.special_ids,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        **options,
    )


def allowed_ids(state: GrammarState) -> list[int]:
    return np.unpackbits(state.mask(), bitorder="little").nonzero()[0].tolist()


def _pick(state: GrammarState, eos_id: int, rng: random.Random) -> int:
    bits = np.unpackbits(state.mask(), bitorder="little")
    assert bool(bits[eos_id]) == state.may_end
    bits[eos_id] = 0
    ids = bits.nonzero()[0]
    return int(rng.choice(ids)) if len(ids) else eos_id


def walk(state: GrammarState, eos_id: int, rng: random.Random, max_tokens: int = 60) -> tuple[list[int], bool]:
    """Random allowed tokens until the end; returns them and whether the end was reached. The end is preferred."""
    ids: list[int] = []
    while len(ids) < max_tokens:
        ids.append(_pick(state, eos_id, rng))
        if state.may_end and rng.random() < 0.3:
            return ids[:-1], True
        if ids[-1] == eos_id:
            return ids[:-1], True
        state.accept(ids[-1])
        if state.is_complete:
            return ids, True
    return ids, False
