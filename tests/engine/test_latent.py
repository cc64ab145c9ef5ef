"""Latent attention (MLA): one row a token serves keys and values, and KV policies drop, choose and encode such rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pagoda import LLM, ConfigError, SamplingParams
from pagoda.bench.random_calibrations import calibrate_at_random
from pagoda.kv.codecs import CODECS
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import Need, Stage
from pagoda.models.families.deepseek_v3 import FAMILY

from .kv_policies import of_stage, spelled
from .tiny import VOCAB, make_model, prompt

PROMPTS = [prompt(70, 61), prompt(71, 18), prompt(72, 100)]
TURNING = ("a2ats", "longcache")
"""Their calibration takes rotary positions out, of which a row has only some: `pagoda calibrate` refuses them."""
CHOOSING = [name for name in of_stage(Stage.SELECTION) if name not in TURNING]
SPLIT = ("duo_attention", "razor_attention")
"""Keep a share of the heads whole: the one that there is, of each layer."""
DROPPING = [name for name in of_stage(Stage.EVICTION, Stage.ALLOCATOR) if name not in SPLIT]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    ours = {"vocab_size": VOCAB, "bos_token_id": 256, "eos_token_id": 257, "max_position_embeddings": 512}
    config: dict[str, Any] = FAMILY.tiny() | ours
    folder = make_model(tmp_path_factory.mktemp("latent"), **config)
    taught = {*CHOOSING, *DROPPING, *SPLIT}
    calibrate_at_random(folder, 3, 1, 28, group=4, latent=True, only=taught)
    with LLM(str(folder), memory="2GiB", kv_memory="1MiB", audit=True, num_threads=1, page_size=8) as llm:
        yield llm


def answers(llm: LLM, kv: str, asked: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, seed=5, kv=kv)
    outputs = llm.generate(asked, params)
    assert [output.error for output in outputs] == [None] * len(asked)
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("name", DROPPING)
def test_slots_are_dropped_and_the_batch_changes_nothing(latent: LLM, name: str) -> None:
    kv, dropped = spelled(name, 12), latent.stats()["kv"]["num_dropped_slots"]
    together = answers(latent, kv, PROMPTS)
    assert latent.stats()["kv"]["num_dropped_slots"] - dropped > 3 * (61 + 18 + 100) // 2, "in three layers"
    assert [answers(latent, kv, [ids])[0] for ids in PROMPTS] == together
    assert together != answers(latent, "exact", PROMPTS)
    assert latent.stats()["kv"]["used_bytes"] == latent.stats()["kv"]["idle_prefix_bytes"]


@pytest.mark.parametrize("name", SPLIT)
def test_layers_keep_all_or_a_window(latent: LLM, name: str) -> None:
    kv, dropped = f"{name}(local=8, every=4)", latent.stats()["kv"]["num_dropped_slots"]
    together = answers(latent, kv, PROMPTS)
    assert latent.stats()["kv"]["num_dropped_slots"] > dropped
    assert [answers(latent, kv, [ids])[0] for ids in PROMPTS] == together
    assert answers(latent, f"{name}(local=400)", PROMPTS) == answers(latent, "exact", PROMPTS)


@pytest.mark.parametrize("name", CHOOSING)
def test_pages_are_chosen_and_all_of_them_are_exact(latent: LLM, name: str) -> None:
    before = latent.stats()["steps"]
    together = answers(latent, f"{name}(pages=2)", PROMPTS)
    steps = latent.stats()["steps"]
    read, held = (steps[count] - before[count] for count in ("pages_read", "pages_held"))
    assert 0 < read < (0.8 if name == "lychee_decode" else 0.6) * held  # whose retrieval heads read all
    assert [answers(latent, f"{name}(pages=2)", [ids])[0] for ids in PROMPTS] == together
    assert answers(latent, f"{name}(pages=400)", PROMPTS) == answers(latent, "exact", PROMPTS)


@pytest.mark.parametrize("kv", [*CODECS.names(), "snapkv(budget=0.5)+int8", "int8+quest(pages=4)"])
def test_rows_are_encoded(latent: LLM, kv: str) -> None:
    together = answers(latent, kv, PROMPTS)
    assert [answers(latent, kv, [ids])[0] for ids in PROMPTS] == together
    formats = latent.stats()["kv"]["formats"]
    assert formats[next(name for name in CODECS.names() if name in kv)]["bytes_per_token"] < 3 * 28 * 4 / 2


def test_codecs_of_keys_and_values_are_refused_by_the_name_that_was_given(latent: LLM) -> None:
    windowed = [name for name in of_stage(Stage.CODEC) if parse_policy(name).windowed is not None]
    assert {"int2", "kivi", "csr"} <= set(windowed)
    for name in windowed:
        with pytest.raises(ConfigError, match=rf"kv='{name}' cannot run .* choose a codec of single slots: fp8, int4"):
            answers(latent, name, PROMPTS)


def test_what_was_not_calibrated_is_refused(latent: LLM) -> None:
    for name in TURNING:
        assert Need.CALIBRATION in POLICIES.get(name).needs  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=f"run: pagoda calibrate {name}"):
            answers(latent, name, PROMPTS)
