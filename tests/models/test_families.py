"""Every family against transformers, on tiny members with random weights: logits of all positions and greedy tokens.

The folder is the list: a new family file is tested by being there.
"""

from __future__ import annotations

import pytest

from pagoda.models import families
from pagoda.models.shape import ModelShape

from . import parity
from .plain_kv import PlainKV

MEMBERS = {
    f"{name}-{member}": config
    for name in families.names()
    for member, config in families.family(name).members().items()
}
ROPE_LENGTH = max(parity.PROMPT_LENS) + parity.NEW_TOKENS


@pytest.mark.parametrize("member", MEMBERS)
def test_parity_with_transformers(member: str) -> None:
    """Alone, and in a ragged batch with chunked prefill: same logits everywhere and the same 64 greedy tokens."""
    config = MEMBERS[member]
    twin = parity.twin(config)
    state = twin.state_dict()
    model = parity.load(config, state, rope_length=ROPE_LENGTH)
    tokens = parity.prompts(model.shape.vocab_size)

    alone = parity.Run(model, PlainKV().view, tokens[:1])
    alone.prefill(None)
    alone.decode(parity.NEW_TOKENS)
    parity.assert_same(alone.all_logits(0), alone.tokens[0], len(tokens[0]), twin, "alone")

    batch = parity.Run(model, PlainKV().view, tokens)
    batch.prefill(parity.CHUNKS)
    batch.decode(parity.NEW_TOKENS)
    assert batch.tokens[0] == alone.tokens[0]
    for s, prompt in enumerate(tokens):
        parity.assert_same(batch.all_logits(s), batch.tokens[s], len(prompt), twin, f"sequence {s} of a batch")

    shape = ModelShape.from_config(config)
    assert shape == model.shape
    assert model.weight_bytes == shape.weight_bytes("float32")
