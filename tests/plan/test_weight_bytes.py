"""Weight bytes of thirty public shapes beside transformers' own modules, made on the meta device: equal to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.models.model import Model
from pagoda.models.shape import ModelShape
from pagoda.weights.quantization import parse_quantization
from tests.plan.public_shapes import SHAPES, config_of


def transformers_bytes(config: dict[str, Any]) -> int:
    """Bytes of all parameters in bfloat16, tied ones once; float32 where a module keeps that type by itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **options), dtype=torch.bfloat16
        )
    model.tie_weights()
    seen = {id(t): t for t in model.parameters()}
    return sum(t.numel() * t.element_size() for t in seen.values()) + _router_bias_bytes(model)


def _router_bias_bytes(model: torch.nn.Module) -> int:
    """DeepSeek keeps a trained vector of its routers as a buffer: in the checkpoint, in float32, like any parameter."""
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    return sum(4 * bias.numel() for bias in biases)


@pytest.mark.parametrize("name", SHAPES)
def test_equal_to_the_byte(name: str) -> None:
    config = config_of(name)
    assert ModelShape.from_config(config).weight_bytes("bfloat16") == transformers_bytes(config)


@pytest.mark.parametrize(
    "text", ["none", "int8", "w8a8", "int5", "int4", "int4(group=32, symmetric=True)", "nf4", "int3", "int2"]
)
@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "deepseek_v3"])
def test_packed_bytes_are_those_of_a_filled_model(family: str, text: str) -> None:
    """Odd sizes included: what the planner counts from the config is what the tensors of a real model take."""
    from pagoda.models.families import family as family_of

    config, quantization = family_of(family).tiny(), parse_quantization(text)
    model = Model.from_config(config, dtype=torch.bfloat16, quantization=quantization).init_random()
    assert model.weight_bytes == ModelShape.from_config(config).weight_bytes("bfloat16", quantization)
