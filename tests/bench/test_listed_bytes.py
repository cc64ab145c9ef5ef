"""The price lists' bytes are those of today's methods: one that keeps other KV or notes than its rows say wants these
measured again (``make price METHOD=…``).

Qualities and speeds are of the day that a list names. Bytes follow from the lengths of prompts and answers almost
alone, so that random tokens in a few cases, as long as the tasks' are, bring back what all of them said.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from pagoda.bench.forced import Case, ForcedEngine
from pagoda.bench.kv import Price, PriceList
from pagoda.bench.kv_page import all_listed

ROOT = Path(__file__).parents[2]
MODELS = ROOT.parent / "shared" / "data" / "models"
LISTS = {one.model: one for one in all_listed((ROOT / "docs" / "kv-policies.md").read_text(encoding="utf-8"))}

CASES = {"lantern": [(96, 96, 2), (28, 20, 5), (63, 1, 1), (25, 4, 1)]}
"""What is left of the list's length for the answer, tokens of the answer, tasks of the list that have such cases."""
RUNNING_TEXT = [(96, 96, 1)]  # both tasks of the other lists
SLACK = {"held_share": (0.01, 0.1), "noted_share": (0.01, 0.08), "looked_share": (0.01, 0.08)}
"""Points and a share. Half a point is the page's rounding; the rest, that few cases stand for all, and that notes are
sometimes measured with the speeds, whose answers are others.
"""


def measured(engine: ForcedEngine, listed: PriceList) -> list[Price]:
    """Bytes of every row that the model can run now."""
    rng, vocab = random.Random(2), engine.built.loaded.shape.vocab_size
    cases, weights = [], []
    for room, answer, weight in CASES.get(listed.model, RUNNING_TEXT):
        ids = tuple(rng.randrange(vocab) for _ in range(listed.length - room + answer))
        cases.append(Case(ids[:-answer], ids[-answer:], ()))
        weights.append(weight)

    def sums(kv: str) -> list[float]:
        answers = list(zip(engine.run(cases, kv), weights, strict=True))
        return [sum(getattr(a, name) * w for a, w in answers) for name in ("held_bytes", "noted_bytes", "looked_bytes")]

    whole, found = sums("exact")[0], []
    for one in listed.prices:
        if engine.why_not(one.kv) is None:
            held, noted, looked = (num / whole for num in sums(one.kv))
            found.append(replace(one, held_share=held, noted_share=noted, looked_share=looked))
    return found


def differing(now: list[Price], listed: PriceList) -> list[str]:
    """Rows whose bytes are not those of the list."""
    rows = {one.kv: one for one in listed.prices}
    found = []
    for one in now:
        for name, (points, share) in SLACK.items():
            is_now, was = getattr(one, name), getattr(rows[one.kv], name) or 0.0
            if abs(is_now - was) > points + share * is_now:
                found.append(f"{one.kv}: {name} is {is_now:.1%}, listed as {was:.0%}")
    return found


@pytest.mark.parametrize("model", LISTS)
def test_every_row_has_the_bytes_of_its_method(model: str) -> None:
    folder = model if model == "lantern" else str(MODELS / model)
    if model != "lantern" and not (MODELS / model).is_dir():
        pytest.skip(f"{MODELS / model} is not here")
    with ForcedEngine(folder, memory="2GiB", num_threads=1) as engine:
        now = measured(engine, LISTS[model])
    assert not differing(now, LISTS[model])
    if model == "lantern":  # which ships calibrated
        assert len(now) == len(LISTS[model].prices)
    assert len(now) > 20

    noting = [one for one in now if (one.noted_share or 0.0) > 0.04]
    assert noting
    for one in noting:  # the slack hides no method that notes twice as much, or half
        for factor in (2.0, 0.5):
            assert differing([replace(one, noted_share=factor * (one.noted_share or 0.0))], LISTS[model]), one.kv
