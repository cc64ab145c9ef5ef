"""Models with packed weights: bytes as the shape says, the numbers of the same model unpacked, the engine's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, UnsupportedModelError, WeightsError
from pagoda.models import families
from pagoda.models.load import load_model
from pagoda.models.model import Model
from pagoda.models.shape import ModelShape
from pagoda.weights.formats import FORMATS
from pagoda.weights.packed import ExpertStack, PackedMatrix
from pagoda.weights.quantization import parse_quantization

from ..engine.tiny import make_model, prompt
from . import fake_model
from .kv_views import Dense
from .tokenizer_samples import data

TEXTS = [*FORMATS.names(), "int4(group=32, symmetric=True)", "int4(embed='same')", "nf4(embed='none')"]


def state(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expected = Model.from_config(config).expected_tensors()
    return {
        name: torch.randn(shape, generator=generator) * (1.0 / shape[-1] ** 0.5) + (len(shape) == 1)
        for name, shape in expected.items()
    }


def filled(config: dict[str, Any], tensors: dict[str, torch.Tensor], text: str = "none", **options: Any) -> Model:
    model = Model.from_config(config, quantization=parse_quantization(text), **options)
    for name in model.load_order(tensors):
        model.load_tensor(name, tensors[name])
    return model.finish_loading()


def unpacked(model: Model) -> Model:
    """The same numbers in plain tensors."""
    twin = Model(model.spec, dtype=model.dtype, device=model.device, rope_length=model.rope_length)
    for name, weight in model.weights().items():
        if isinstance(weight, ExpertStack):
            for expert in range(weight.shape[0]):
                twin._store.fill_whole(name, expert, weight[expert].dense())
        else:
            twin._store.fill_whole(name, -1, weight.dense() if isinstance(weight, PackedMatrix) else weight)
    twin._store.covered |= twin._sources.regions()
    return twin.finish_loading()


def logits(model: Model) -> torch.Tensor:
    ids = torch.randint(3, model.shape.vocab_size, (9,), generator=torch.Generator().manual_seed(3))
    view = Dense()([0], [9])
    with torch.inference_mode():
        return model.logits(model.forward(ids, torch.arange(9), view))


def members() -> list[Any]:
    wanted = ("llama", "qwen2", "gpt2", "falcon", "opt", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "bitnet")
    return [
        pytest.param(config, id=f"{name}-{variant}")
        for name in wanted
        for variant, config in families.family(name).members().items()
    ]


@pytest.mark.parametrize("config", members())
@pytest.mark.parametrize("text", ["int8", "int4(group=32)", "ternary"])
def test_every_arrangement_packs_exactly_its_bytes_and_computes_with_them(config: dict[str, Any], text: str) -> None:
    model = filled(config, state(config), text)
    assert model.weight_bytes == ModelShape.from_config(config).weight_bytes("float32", parse_quantization(text))
    torch.testing.assert_close(logits(model), logits(unpacked(model)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_every_format_in_a_model(text: str, tied: bool, dtype: str) -> None:
    config = families.family("llama").tiny() | {"tie_word_embeddings": tied}
    model = filled(config, state(config), text, dtype=getattr(torch, dtype))
    planned = ModelShape.from_config(config).weight_bytes(dtype, parse_quantization(text))
    assert model.weight_bytes == planned + model.beyond_bytes
    assert model.beyond_bytes == 0 or text == "bf12"
    assert ("lm_head.weight" in model.weights()) is not tied
    if dtype == "float32" and not any(
        getattr(w, "format", None) and w.format.dynamic for w in model.weights().values()
    ):
        torch.testing.assert_close(logits(model), logits(unpacked(model)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["int8", "int4", "nf4", "fp8", "int3", "bitstack"])
def test_greedy_tokens_of_the_engine_equal_those_of_the_unpacked_model(tmp_path: Path, text: str) -> None:
    folder = make_model(tmp_path / "m", tie_word_embeddings=True)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    prompts = [prompt(seed, 20 + seed) for seed in range(3)]
    with LLM(str(folder), memory="2GiB", quantization=text, dtype="float32") as llm:
        ours = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
        assert llm.stats()["model"]["quantization"] == text
        plain = unpacked(llm._open().loaded.model)
        llm._open().engine._runner.model = plain
        theirs = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
        alone = [llm.generate(p, params)[0].outputs[0].token_ids for p in prompts]
    assert ours == theirs == alone


def test_a_tied_head_that_is_stored_as_well() -> None:
    config = families.family("llama").tiny() | {"tie_word_embeddings": True}
    tensors = state(config)
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert "lm_head.weight" not in filled(config, same, "int8").weights()
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}
    assert isinstance(filled(config, other, "int8").weights()["lm_head.weight"], PackedMatrix)


def test_ternary_checkpoint_stays_exact() -> None:
    folder = data("models/bitnet-stories-3M")
    exact, packed = load_model(folder), load_model(folder, quantization="ternary")
    assert packed.model.weight_bytes < 0.22 * exact.model.weight_bytes  # which is in float16
    torch.testing.assert_close(logits(packed.model), logits(exact.model), rtol=1e-4, atol=1e-4)


def test_bytes_are_leased_before_the_first_is_read(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    ledger, seen = Ledger(64 << 20), set[int]()
    loaded = load_model(
        folder, quantization="int4", ledger=ledger, progress=lambda *_: seen.add(ledger.leased_by("weights"))
    )
    assert seen == {loaded.model.weight_bytes}
    assert loaded.shape.weight_bytes("float32", loaded.quantization) == loaded.model.weight_bytes
    loaded.close()
    assert ledger.leased_bytes == 0


def test_a_budget_that_only_packed_weights_fit(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", hidden_size=256, intermediate_size=1024, vocab_size=4000)
    budget = 20 << 20
    with pytest.raises(BudgetError, match="weights"):
        load_model(folder, ledger=Ledger(budget))
    assert load_model(folder, ledger=Ledger(budget), quantization="int4").model.weight_bytes < 3 << 20


def test_fingerprints_tell_formats_apart(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    names = ("none", "int8", "int4", "int4(group=32)", "int4(embed='none')")
    assert len({load_model(folder, quantization=text).fingerprint for text in names}) == len(names)


def test_values_that_no_format_holds(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    tensors = fake_model.weights(fake_model.CONFIG)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name][3, 4] = float("nan")
    fake_model.save(folder, tensors)
    ledger = Ledger(64 << 20)
    with pytest.raises(WeightsError, match=rf"{name}.*not a number"):
        load_model(folder, quantization="int4", ledger=ledger)
    assert ledger.leased_bytes == 0


def test_refusals(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    with pytest.raises(ConfigError, match="unknown quantization 'int6'"):
        LLM(str(folder), quantization="int6")
    (folder / "config.json").write_text(json.dumps(fake_model.CONFIG | {"model_type": "olmo"}))
    with pytest.raises(UnsupportedModelError, match="quantization='int8': olmo runs in transformers' modules"):
        load_model(folder, quantization="int8")
