"""The ranker learns which prompts get long answers, from answers that ended."""

from __future__ import annotations

from random import Random

from pagoda.schedule.prediction.quality import rank_correlation
from pagoda.schedule.prediction.ranker import NUM_HEAD, NUM_TAIL, Ranker, features


def sample(random: Random) -> tuple[list[int], int]:
    """A prompt whose last word says how long the answer is; the rest is noise."""
    word = random.randrange(6)
    return [random.randrange(100, 2000) for _ in range(30)] + [word], 4 ** (word % 3 + 1) + random.randrange(3)


def test_it_learns_the_order_of_answers_from_a_word_of_the_prompt() -> None:
    random, ranker = Random(1), Ranker()
    for _ in range(400):
        ranker.observe(*sample(random))
    prompts, lengths = zip(*(sample(random) for _ in range(200)), strict=True)
    scores = [ranker.score(prompt) for prompt in prompts]
    assert rank_correlation(scores, [float(length) for length in lengths]) > 0.7
    untrained = Ranker()
    assert rank_correlation([untrained.score(p) for p in prompts], [float(n) for n in lengths]) == 0.0


def test_long_prompts_cost_no_more_than_short_ones() -> None:
    assert len(features(range(100_000))) <= 2 + NUM_HEAD + NUM_TAIL
    assert features([]) == features([])
