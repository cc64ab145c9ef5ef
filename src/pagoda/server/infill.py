"""``suffix``: the prompt forms of models that were trained to fill a gap.

Bavarian et al., "Efficient Training of Language Models to Fill in the Middle" (arXiv:2207.14255), prefix-suffix-middle.
"""

from __future__ import annotations

from ..models.tokenizer import Tokenizer
from .errors import bad

# (before the prefix, before the suffix, before the middle), as the vocabularies of known models spell them
FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def infill_ids(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Token ids that ask for what stands between. Raises ApiError naming ``suffix`` where the model cannot."""
    for form in FORMS:
        marks = [tokenizer.token_id(name) for name in form]
        if all(mark is not None for mark in marks):
            before, after = tokenizer.encode_many([prefix, suffix], add_special_tokens=False)
            start = [] if tokenizer.bos_id is None or not _adds_bos(tokenizer) else [tokenizer.bos_id]
            return [*start, marks[0], *before, marks[1], *after, marks[2]]  # type: ignore[list-item]
    raise bad("suffix", "suffix: this model has no infilling tokens; leave it out")


def _adds_bos(tokenizer: Tokenizer) -> bool:
    ids = tokenizer.encode("a")
    return bool(ids) and ids[0] == tokenizer.bos_id
