"""What a family refuses, and how the loader names a checkpoint's faults."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.core.errors import ModelError, PagodaError, UnsupportedModelError, WeightsError
from pagoda.models import families
from pagoda.models.families import read_spec
from pagoda.models.model import Model


def tiny(family: str, **changes: Any) -> dict[str, Any]:
    return {**families.family(family).tiny(), **changes}


REFUSED = {
    "rope_type": (tiny("llama", rope_scaling={"type": "su", "factor": 2.0}), "unknown rope type 'su'.*llama3"),
    "mrope": (tiny("qwen2", rope_scaling={"type": "default", "mrope_section": [1, 1, 2]}), "mrope_section"),
    "no_factor": (tiny("llama", rope_scaling={"type": "linear"}), "rope_parameters.factor is missing"),
    "partial": (tiny("llama", partial_rotary_factor=0.5), "not a llama feature"),
    "odd_rotary": (tiny("stablelm", partial_rotary_factor=0.4), "rotary dimension 3"),
    "factors": (tiny("phi3", rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}), "short"),
    "activation": (tiny("llama", hidden_act="mish"), "unknown hidden_act 'mish'.*silu"),
    "wrong_type": (tiny("llama", hidden_size="32"), "hidden_size='32'; it must be an integer"),
    "flag": (tiny("llama", attention_bias=1), "attention_bias=1; it must be true or false"),
    "negative": (tiny("llama", num_hidden_layers=0), "num_hidden_layers=0"),
    "heads": (tiny("llama", num_key_value_heads=3), "do not divide"),
    "head_dim": (tiny("gpt2", n_head=5), "not a multiple"),
    "layer_type": (tiny("qwen3", layer_types=["full_attention", "chunked_attention"]), "chunked_attention"),
    "layer_count": (tiny("gemma2", layer_types=["full_attention"]), "one per layer"),
    "no_window": (tiny("qwen2", use_sliding_window=False, layer_types=["sliding_attention"] * 3), "no sliding_window"),
    "bidirectional": (tiny("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention"),
    "cross": (tiny("gpt2", add_cross_attention=True), "add_cross_attention"),
    "gemma3_cap": (tiny("gemma3_text", attn_logit_softcapping=50.0), "attn_logit_softcapping"),
    "cohere_qk": (tiny("cohere2", use_qk_norm=True), "use_qk_norm"),
    "falcon": (tiny("falcon", new_decoder_architecture=True, parallel_attn=False), "parallel_attn"),
    "falcon_norms": (tiny("falcon", num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn"),
    "groups": (tiny("deepseek_v3", n_group=3), "n_group=3"),
    "scoring": (tiny("deepseek_v3", scoring_func="softmax"), "scoring_func"),
    "no_rope_list": (tiny("smollm3", no_rope_layers=[1, 0]), "no_rope_layers"),
    "layer_types_in_mistral": (tiny("mistral", layer_types=["full_attention"] * 2), "ministral"),
    "table": (tiny("llama", rope_scaling="linear"), "rope_scaling='linear'; it must be an object"),
    "no_type": ({"hidden_size": 3}, "no model_type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_config_is_read_strictly(case: str) -> None:
    """Every unknown value of a feature key is one line that names it."""
    config, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        read_spec(config)
    assert "\n" not in str(caught.value)


def test_unknown_family_lists_the_native_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no native family 'mamba'.*deepseek_v3.*stablelm"):
        read_spec({"model_type": "mamba"})
    assert not families.is_native({"model_type": "mamba"})
    assert families.is_native({"model_type": "llama"})


def filled(config: dict[str, Any], *, without: tuple[str, ...] = ()) -> Model:
    model = Model.from_config(config)
    for name, shape in model.expected_tensors().items():
        if name not in without:
            assert model.load_tensor(name, torch.randn(shape))
    return model


def test_missing_tensors_are_listed() -> None:
    gone = ("model.layers.1.self_attn.k_proj.weight", "model.norm.weight")
    with pytest.raises(WeightsError, match="2 tensors are missing from this llama checkpoint") as caught:
        filled(tiny("llama"), without=gone).finish_loading()
    assert all(name in str(caught.value) for name in gone)


def test_an_untouched_model_names_its_first_tensors() -> None:
    with pytest.raises(WeightsError, match=r"20 tensors are missing.*model.embed_tokens.weight.*and 12 more"):
        Model.from_config(tiny("llama", num_hidden_layers=2)).finish_loading()
    with pytest.raises(ModelError, match="not loaded"):
        Model.from_config(tiny("llama")).logits(torch.zeros(1, 32))


def test_unexpected_and_misshapen_tensors_are_named() -> None:
    model = Model.from_config(tiny("llama"))
    with pytest.raises(WeightsError, match=r"unexpected tensor 'model.layers.7.mlp.up_proj.weight' \[3\]"):
        model.load_tensor("model.layers.7.mlp.up_proj.weight", torch.zeros(3))
    with pytest.raises(WeightsError, match=r"'model.norm.weight' has shape \[31\].*needs \[32\]"):
        model.load_tensor("model.norm.weight", torch.zeros(31))
    with pytest.raises(WeightsError, match="stored as torch.int8"):
        model.load_tensor("model.norm.weight", torch.zeros(32, dtype=torch.int8))
    assert issubclass(WeightsError, PagodaError)


def test_tensors_of_no_use_are_skipped() -> None:
    model = Model.from_config(tiny("llama"))
    assert not model.load_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(4))
    gpt2 = Model.from_config(tiny("gpt2"))
    assert not gpt2.load_tensor("h.0.attn.bias", torch.zeros(1, 1, 4, 4))
    gemma = Model.from_config(tiny("gemma3"))
    assert not gemma.load_tensor("vision_tower.vision_model.embeddings.patch_embedding.bias", torch.zeros(4))
    deepseek = Model.from_config(tiny("deepseek_v3"))
    assert not deepseek.load_tensor("model.layers.3.eh_proj.weight", torch.zeros(4, 4))
    with pytest.raises(WeightsError, match="unexpected"):
        deepseek.load_tensor("model.layers.33.eh_proj.weight", torch.zeros(4, 4))


def test_names_without_the_base_prefix() -> None:
    """Checkpoints of the bare model (old GPT-2 files) leave the prefix out."""
    model = Model.from_config(tiny("gpt2"))
    for name, shape in model.expected_tensors().items():
        assert model.load_tensor(name.removeprefix("transformer."), torch.randn(shape))
    model.finish_loading()


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_both_spellings_of_multimodal_gemma3(prefix: str) -> None:
    model = Model.from_config(tiny("gemma3"))
    for name, shape in model.expected_tensors().items():
        assert model.load_tensor(prefix + name.removeprefix("model."), torch.randn(shape))
    model.finish_loading()


def test_a_tied_head_may_be_stored_or_not() -> None:
    config = tiny("llama", tie_word_embeddings=True)
    model = filled(config)
    assert "lm_head.weight" not in model.expected_tensors()
    assert not model.load_tensor("lm_head.weight", model.weights()["embed.weight"].clone())
    assert "lm_head.weight" not in model.finish_loading().weights()
    head_only, head = filled(config, without=("model.embed_tokens.weight",)), torch.randn(96, 32)
    assert head_only.load_tensor("lm_head.weight", head)
    assert torch.equal(head_only.finish_loading().weights()["embed.weight"], head)


@pytest.mark.parametrize("head_first", [True, False])
def test_a_tied_head_with_other_values_is_a_head(head_first: bool) -> None:
    """As transformers does: what the checkpoint says counts for more than the config."""
    config, head, embed = tiny("llama", tie_word_embeddings=True), torch.randn(96, 32), torch.randn(96, 32)
    model = filled(config, without=("model.embed_tokens.weight",))
    pair = [("lm_head.weight", head), ("model.embed_tokens.weight", embed)]
    for name, tensor in pair if head_first else reversed(pair):
        assert model.load_tensor(name, tensor)
    model.finish_loading()
    hidden = torch.randn(2, 32)
    assert torch.allclose(model.logits(hidden), hidden @ head.T, atol=1e-5)
    assert torch.equal(model.weights()["embed.weight"], embed)


def test_an_absent_head_is_tied() -> None:
    model = filled(tiny("llama"), without=("lm_head.weight",)).finish_loading()
    hidden = torch.randn(2, 32)
    assert torch.allclose(model.logits(hidden), hidden @ model.weights()["embed.weight"].T, atol=1e-5)


def test_dtype_is_converted_while_placing() -> None:
    model = Model.from_config(tiny("deepseek_v3"), dtype=torch.bfloat16)
    for name, shape in model.expected_tensors().items():
        model.load_tensor(name, torch.randn(shape, dtype=torch.float64))
    model.finish_loading()
    dtypes = {name.rsplit(".", 1)[-1]: w.dtype for name, w in model.weights().items()}
    assert dtypes.pop("correction_bias") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


def test_memory_while_loading_is_what_has_arrived() -> None:
    model = Model.from_config(tiny("llama"))
    assert model.weight_bytes == 0
    model.load_tensor("model.norm.weight", torch.ones(32))
    assert model.weight_bytes == 32 * 4
