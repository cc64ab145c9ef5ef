"""The recall generator: distances exact in tokens, one place for the answer, the same case from the same seed."""

from __future__ import annotations

import random
import re

import pytest

from pagoda.bench.quality.copying import WORDS, copy_case
from pagoda.bench.quality.counting import count_back_case, reverse_case
from pagoda.bench.quality.facts import FORMS, draw_facts
from pagoda.bench.quality.recall import RecallCase, Wrap, flatten, recall_case, take, without_past

VOCAB: dict[str, int] = {}


def encode(text: str) -> list[int]:
    """A word tokenizer that learns as it goes: pieces are words with their space, digits and marks alone."""
    return [VOCAB.setdefault(piece, len(VOCAB) + 10) for piece in re.findall(r" ?[A-Za-z]+|\d|\s|[^\w\s]", text)]


def decode(ids: tuple[int, ...] | list[int]) -> str:
    names = {number: piece for piece, number in VOCAB.items()}
    return "".join(names.get(i, f"<{i}>") for i in ids)


FILLER = [encode(f" The little {w} went over the hill and sang a song about {v}.") for w in "abcdefg" for v in "xyz"]


def make(seed: int, **changes: object) -> RecallCase:
    settings: dict[str, object] = {"distance": 200, "depth": 40} | changes
    return recall_case(seed, encode, FILLER, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", [64, 256, 1024, 1800])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_distance_and_depth_are_exact_in_tokens(form: str, distance: int) -> None:
    for seed in range(10):
        case = make(seed, distance=distance, depth=33, forms=(form,), distractors=1)
        assert case.distance == distance
        assert case.fact_start == 33
        planted = case.prompt_ids[case.value_start : case.value_start + len(case.answer_ids)]
        assert planted == case.answer_ids


def test_the_answer_stands_in_the_prompt_once() -> None:
    for seed in range(200):
        case = make(seed)
        text = decode(case.prompt_ids)
        assert text.count(case.fact.lead + case.answer) == 1, text
        assert text.endswith(case.fact.lead)
        assert text.count(case.fact.lead) == 2  # told and asked


def test_distractors_share_the_form_but_neither_key_nor_answer() -> None:
    for seed in range(50):
        case = make(seed, forms=("number",), distractors=5)
        told = re.findall(r"The secret number of (\w+) is (\d+)", decode(case.prompt_ids))
        assert len(told) == 6
        assert len({name for name, _ in told}) == 6
        assert [value for _, value in told].count(case.answer.strip()) == 1


def test_a_seed_names_a_case() -> None:
    assert make(5) == make(5)
    assert len({make(seed).prompt_ids for seed in range(30)}) == 30


def test_a_chat_wrap_stands_around_the_text_and_counts() -> None:
    wrap = Wrap(head=(1, 4), tail=(6, 5))
    case = make(3, wrap=wrap, ask=True, forms=("place",), depth=20)
    assert case.prompt_ids[:2] == (1, 4)
    assert case.fact_start == 20
    assert case.distance == 200
    opened = case.prompt_ids.index(5)
    assert case.prompt_ids[opened - 1] == 6
    assert decode(case.prompt_ids[opened + 1 :]) == case.fact.lead.lstrip()
    assert decode(case.prompt_ids[: opened - 1]).endswith(case.fact.question)


def test_too_small_a_distance_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="distance 12 or depth 40 too small for 3 distractors"):
        make(0, distance=12)


def test_cutting_off_the_past_removes_the_fact() -> None:
    case = make(9, distance=300)
    cut = without_past(case, window=100, head=1)
    assert cut == case.prompt_ids[:1] + case.prompt_ids[-100:]
    assert decode(cut).count(case.fact.lead) == 1
    assert without_past(case, window=10_000) == case.prompt_ids


def test_take_gives_consecutive_sentences_and_exactly_the_tokens() -> None:
    for count in (0, 1, 17, 500):
        assert len(flatten(take(random.Random(1), FILLER, count))) == count


def test_facts_of_one_text_have_different_leads() -> None:
    facts = draw_facts(random.Random(0), 40)
    assert len({f.lead for f in facts}) == 40
    assert all(f.statement == f.lead + f.value + f.end for f in facts)
    codes = draw_facts(random.Random(0), 20, ("number",), digits=(1,))
    assert {len(f.value.strip()) for f in codes} == {1}


def test_copying_and_counting_have_one_right_answer() -> None:
    copied = copy_case(1, 6)
    assert copied.prompt == f"Copy:{copied.answer} Again:"
    assert copied == copy_case(1, 6) != copy_case(2, 6)
    numbers = [int(n) for n in re.findall(r"\d+", count_back_case(4, 5).answer)]
    assert numbers == list(range(numbers[0], numbers[0] - 5, -1))
    assert numbers[-1] >= 1
    back = reverse_case(7, 4)
    words = back.answer.strip(" .").split()
    assert back.prompt == f"Backwards: {' '.join(reversed(words))}. From the end:"
    assert set(words) <= set(WORDS)
