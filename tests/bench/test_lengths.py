"""``pagoda calibrate`` for scheduling policies: prompts read, predictors trained and judged, used by the engine."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from random import Random

import pytest

from pagoda import LLM, SamplingParams
from pagoda.bench.lengths import TRAINERS, Answered, answer, calibrate, read_prompts, train_probe
from pagoda.core.errors import ConfigError, ModelError
from pagoda.models.resolve import resolve
from pagoda.schedule.prediction.trained import TAUGHT, write_trained


def told(num: int = 120) -> list[Answered]:
    """The first token, and the third hidden feature, say how long the answer is."""
    random, found = Random(1), []
    for _ in range(num):
        word = random.randrange(4)
        hidden = (random.gauss(0, 1), random.gauss(0, 1), word + random.gauss(0, 0.1))
        found.append(Answered((word, *(random.randrange(9, 99) for _ in range(9))), 5 * 3**word, hidden, cut=False))
    return found


@pytest.mark.parametrize("policy", ["trail", "learning_to_rank"])
def test_what_can_be_learned_is_learned_and_judged_on_what_was_not_seen(policy: str) -> None:
    predictor, notes = calibrate(policy, told())
    assert notes[f"spearman_{policy}"] > 0.8 > 0.3 > notes["spearman_histogram"]
    assert notes[f"kendall_{policy}"] > 0.6
    assert json.loads(json.dumps(predictor)) == predictor


def test_answers_that_are_all_alike_teach_nothing() -> None:
    with pytest.raises(ConfigError, match="1 lengths teach nothing"):
        calibrate("trail", [Answered((i,), 5, (0.0,), cut=True) for i in range(40)])


def test_a_probe_ignores_features_that_never_change() -> None:
    answers = [Answered(a.prompt, a.num_output, (*a.hidden, 1.0), a.cut) for a in told()]
    probe = train_probe(answers)
    assert probe.length((0.0, 0.0, 3.0, 1.0)) == pytest.approx(135, rel=0.3)


def test_prompts_are_lines_or_fields(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}"} for i in range(15)] + [{"turns": [f"t{i}", "later"]} for i in range(15)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    wanted = [f"{kind}{i}" for kind in "qt" for i in range(15)]
    assert sorted(read_prompts(tmp_path / "a.jsonl.gz", 100)) == sorted(wanted)
    (tmp_path / "b.txt").write_text("\n".join(f"line {i}" for i in range(30)))
    assert len(read_prompts(tmp_path / "b.txt", 25)) == 25
    (tmp_path / "c.jsonl").write_text('{"x": 1}\n')
    for name, message in (("c.jsonl", "line 1"), ("absent", "no prompts at"), ("a.txt", "0 different")):
        if name == "a.txt":
            (tmp_path / name).write_text("\n")
        with pytest.raises(ConfigError, match=message):
            read_prompts(tmp_path / name, 10)


@pytest.fixture
def lantern(tmp_path: Path) -> Path:
    """The model's files, in a folder that may be written to."""
    folder = tmp_path / "lantern"
    folder.mkdir()
    for file in resolve("lantern").iterdir():
        if file.is_file():
            os.symlink(file, folder / file.name)
    return folder


def test_the_engine_hands_the_probe_what_it_was_trained_on(lantern: Path) -> None:
    texts = [f"Once upon a time there was a {word}" for word in ("cat", "dog", "little girl who liked to sing")]
    answers, folder = answer(str(lantern), texts, max_tokens=4, chat=False)
    assert [a.num_output for a in answers] == [4, 4, 4]
    assert folder == lantern
    options = {"memory": "4GiB", "structured_output": False, "scheduling": "trail"}
    with pytest.raises(ConfigError, match="pagoda calibrate trail"):
        LLM(str(lantern), **options)
    size = len(answers[0].hidden)
    probe = {"mean": [0.0] * size, "scale": [1.0] * size, "weights": [0.01] * size, "bias": 2.0}
    write_trained(lantern, "trail", probe, {})
    with LLM(str(lantern), max_num_batched_tokens=5, **options) as llm:  # in chunks: the mean is the same
        policy, seen = llm._built.engine.scheduler.policy, []  # type: ignore[union-attr]
        policy.probed = lambda item, hidden: seen.append(hidden)  # type: ignore[method-assign]
        llm.generate(texts[2], SamplingParams(temperature=0, max_tokens=2))
    assert seen[0] == pytest.approx(answers[2].hidden, abs=0.05)
    write_trained(lantern, "trail", {"mean": [0.0]}, {})
    with pytest.raises(ModelError, match="damaged"):
        LLM(str(lantern), **options)


def test_every_policy_that_is_taught_has_a_trainer() -> None:
    assert sorted(TRAINERS) == sorted(TAUGHT)
