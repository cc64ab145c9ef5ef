"""The converters' arithmetic, as far as it runs without the peers' own packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.peers import checkpoints
from benchmarks.peers.forms import compressed, gguf
from benchmarks.peers.shapes import SHAPES, Shape

TINY = Shape("tiny", "qwen2", "Qwen2ForCausalLM", 64, 2, 4, 2, 16, 128, 512, 1e4, 1e-6, 16384, qkv_bias=True)


def test_a_model_folder_is_made_once_and_read_by_transformers(tmp_path: Path) -> None:
    folder = checkpoints.model_folder(tmp_path, TINY)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoints.model_folder(tmp_path, TINY) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert matrices == TINY.layer_params + TINY.head_params
    assert len(AutoTokenizer.from_pretrained(folder)) == TINY.vocab


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_the_configs_are_accepted_by_pagoda(shape: Shape) -> None:
    from pagoda.models.model import Model

    tensors = Model.from_config(shape.config()).expected_tensors()
    assert sum(np.prod(size) for size in tensors.values() if len(size) == 2) == shape.layer_params + shape.head_params


def test_int8_by_channel() -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    made = compressed.int8("a.weight", weight)
    back = made["a.weight"].float() * made["a.weight_scale"].float()
    assert made["a.weight"].dtype == torch.int8
    assert (back - weight.float()).abs().max() <= weight.float().abs().max() / 127


def test_llama_cpp_pairs_neighbours_where_the_hub_pairs_halves() -> None:
    rows = np.arange(2 * 4).reshape(8, 1)  # two heads of four: halves (0, 1 | 2, 3)
    assert gguf.interleave_rotary(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_tensors_of_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    [(name, bits)] = gguf.tensors(tmp_path / "x.safetensors")
    assert (name, bits.tolist()) == ("a", [[0x3F80, 0xC000]])


def test_a_converter_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.config()))
    with pytest.raises(checkpoints.FormError, match="compressed int8 of tiny: FileNotFoundError"):
        checkpoints.make_form(_python(), folder, "compressed", "int8", seconds=60, prefix=[])
    assert not checkpoints.form_path(folder, "compressed", "int8").exists()


def _python() -> str:
    import sys

    return sys.executable
