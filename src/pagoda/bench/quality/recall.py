"""Recall over an exact distance: facts planted in a filler text, one of them asked later. Pure Python, no torch.

    |- depth -|                 |------------ distance ------------|
    filler ... [lead][value]... distractors, filler ... [lead again] -> the value is the only right continuation
                ^ the fact       ^ first token of `value`           ^ len(prompt_ids)

`distance` counts tokens from the first token of the planted value to the place where the same token must be predicted,
so a model that sees only the last `distance - 1` tokens cannot answer. Distractors are facts of the same form with
other keys: "the only number in the text" is not enough. Text comes from the caller, so does the tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pagoda.bench.quality.facts import FORMS, Fact, draw_facts

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class RecallCase:
    """A prompt and its one right continuation, as ids (exact) and as text (for reading)."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    fact: Fact
    fact_start: int  # index of the first token of the planted statement
    value_start: int  # index of the first token of the planted value

    @property
    def distance(self) -> int:
        return len(self.prompt_ids) - self.value_start


@dataclass(frozen=True)
class Wrap:
    """Ids around the text: a document (`head` = bos) or a chat turn (`tail` closes it and opens the answer)."""

    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()


def recall_case(
    seed: int,
    encode: Encode,
    filler: Sequence[Sequence[int]],
    *,
    distance: int,
    depth: int,
    distractors: int = 3,
    forms: tuple[str, ...] = tuple(FORMS),
    wrap: Wrap | None = None,
    ask: bool = False,
) -> RecallCase:
    """One case from one seed.

    filler: sentences as token ids, each beginning with its space; they are drawn in runs from a random place.
    depth: tokens before the planted statement, `wrap.head` included.
    ask: the question is put in words before the lead ("What is the secret number of Tom? The secret number of Tom is").
    Raises ValueError where the distance cannot hold the distractors and the question.
    """
    rng = random.Random(seed)
    wrap = wrap or Wrap()
    form = rng.choice(forms)
    fact, *others = draw_facts(rng, 1 + distractors, (form,))
    while any(fact.value == other.value for other in others):
        fact, *others = draw_facts(rng, 1 + distractors, (form,))

    lead, value = encode(fact.lead), encode(fact.value)
    question = (encode(fact.question) if ask else []) + list(wrap.tail) + _encode_after(encode, fact.lead, wrap.tail)
    # Everything between the planted value and the question: distractors at random places in the filler.
    room = distance - len(value) - len(encode(fact.end)) - len(question)
    planted = [encode(other.statement) for other in others]
    room -= sum(map(len, planted))
    if room < 0 or depth < len(wrap.head):
        raise ValueError(f"distance {distance} or depth {depth} too small for {distractors} distractors and a question")
    between = take(rng, filler, room)
    for statement in planted:
        between.insert(rng.randint(0, len(between)), statement)

    prompt = [*wrap.head, *flatten(take(rng, filler, depth - len(wrap.head)))]
    fact_start = len(prompt)
    prompt += lead + value + encode(fact.end)
    prompt += [*flatten(between), *question]
    return RecallCase(tuple(prompt), tuple(value), fact.value, fact, fact_start, fact_start + len(lead))


def _encode_after(encode: Encode, text: str, tail: tuple[int, ...]) -> list[int]:
    """After a chat turn's opening the answer begins without its space."""
    return encode(text.lstrip()) if tail else encode(text)


def take(rng: random.Random, filler: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Exactly `count` tokens of consecutive sentences from a random place; the last sentence is cut."""
    found: list[list[int]] = []
    at = rng.randrange(len(filler))
    while count > 0:
        sentence = list(filler[at % len(filler)])[:count]
        found.append(sentence)
        count -= len(sentence)
        at += 1
    return found


def flatten(pieces: Sequence[Sequence[int]]) -> list[int]:
    return [token for piece in pieces for token in piece]


def without_past(case: RecallCase, window: int, head: int = 0) -> tuple[int, ...]:
    """The same prompt with the distant context cut off: the first `head` ids and the last `window`."""
    kept = case.prompt_ids[-window:]
    return case.prompt_ids[:head] + kept if len(kept) < len(case.prompt_ids) else case.prompt_ids
