"""Every policy and codec on shapes that the other tests' model does not have: one kv-head, or as many as heads, of 8 to
256 channels, sinks, soft caps, layers that scale queries differently, pages of other sizes, narrow KV.
(Latent KV has a file of its own.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pagoda import LLM, ConfigError, RequestError, SamplingParams
from pagoda.bench.random_calibrations import calibrate_at_random
from pagoda.kv.policies.base import Stage
from pagoda.models.families import family

from .kv_policies import EVERY, LOSSY, of_stage, spelled, tight
from .tiny import VOCAB, make_model, prompt

PROMPTS = [prompt(80, 100), prompt(81, 18), prompt(82, 61)]
OURS = {"vocab_size": VOCAB, "bos_token_id": 256, "eos_token_id": 257, "max_position_embeddings": 512}
JOINED = ["snapkv(budget=0.5, window=8)+int8+quest(pages=2)", "snapkv(budget=20, window=8)+kivi(window=8, every=8)",
          "h2o(budget=16)+ada+int4", "int8+sparq(pages=2)"]  # fmt: skip


def heads(num: int, num_kv: int, dim: int) -> dict[str, Any]:
    return {"num_attention_heads": num, "num_key_value_heads": num_kv, "head_dim": dim}


def of_family(name: str, member: str = "tiny", **changes: Any) -> dict[str, Any]:
    return family(name).members()[member] | OURS | changes


SHAPES: dict[str, tuple[tuple[int, int, int], dict[str, Any], dict[str, Any]]] = {
    "one wide kv-head": ((4, 1, 256), heads(4, 1, 256), {"page_size": 32, "kv_cache_dtype": "float16"}),
    "as many as heads": ((5, 5, 80), heads(5, 5, 80), {"page_size": 16, "dtype": "bfloat16"}),
    "sinks": ((4, 2, 8), of_family("gpt_oss", sliding_window=512), {"page_size": 8}),
    "soft caps": ((4, 2, 12), of_family("gemma2", sliding_window=512), {"page_size": 16, "kv_cache_dtype": "int8"}),
    "scales by layer": ((4, 4, 8), of_family("gpt2", "scaled", n_positions=512), {"page_size": 8}),
}  # fmt: skip
"""(query heads, kv-heads, channels), the model, and how it is run."""
REFUSED = {
    "one wide kv-head": {"chai": "nobody to share keys with", "kv_heads_compress": "do not make groups of 2"},
    "as many as heads": {"chai": "no whole number", "kv_heads_compress": "do not make groups of 2"},
}


@pytest.fixture(scope="module", params=SHAPES)
def shaped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LLM, list[list[int]]]]:
    name = request.param
    (num, num_kv, dim), config, options = SHAPES[name]
    folder = make_model(tmp_path_factory.mktemp("shaped"), **config)
    calibrate_at_random(folder, config.get("num_hidden_layers", 2), num_kv, dim, group=num // num_kv)
    with LLM(str(folder), memory="2GiB", kv_memory="16MiB", audit=True, num_threads=1, **options) as llm:
        yield name, llm, answers(llm, "exact", PROMPTS[:2])


def answers(llm: LLM, kv: str, asked: list[list[int]]) -> list[list[int]]:
    outputs = llm.generate(asked, SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, seed=5, kv=kv))
    assert [output.error for output in outputs] == [None] * len(asked)
    return [output.token_ids for output in outputs]


def beyond(name: str) -> str | None:
    """The method with so large a budget that it loses nothing, where it has one."""
    if name in LOSSY:
        return spelled(name, 400)
    return f"{name}(pages=400)" if name in of_stage(Stage.SELECTION) else None


@pytest.mark.parametrize("name", [*EVERY, *JOINED])
def test_the_batch_changes_nothing_and_a_large_budget_loses_nothing(
    shaped: tuple[str, LLM, list[list[int]]], name: str
) -> None:
    shape, llm, exact = shaped
    kv = tight(name) if name in EVERY else name
    if (why := REFUSED.get(shape, {}).get(name)) is not None:
        with pytest.raises((ConfigError, RequestError), match=f"{name}.* cannot run .*{why}"):
            answers(llm, kv, PROMPTS)
        return
    together = answers(llm, kv, PROMPTS)
    assert answers(llm, kv, PROMPTS[:1]) == together[:1]
    if (whole := beyond(name)) is not None:
        assert answers(llm, whole, PROMPTS[:2]) == exact
