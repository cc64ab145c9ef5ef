"""ReLU models whose neurons stay on disk: the dense model's numbers, reads that add up, refusals by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import ConfigError, ModelError, WeightsError
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models.config_json import read_config
from pagoda.models.load import load_model
from pagoda.models.neuron_file import FILE, bundle
from pagoda.models.placement import Room
from pagoda.weights.neurons import neighbours
from pagoda.weights.reader import Checkpoint
from pagoda.weights.source import open_source

from . import fake_model

RELU_LLAMA = {"hidden_act": "relu", "intermediate_size": 96, "mlp_bias": True, "num_hidden_layers": 3}
OPT = {
    "model_type": "opt", "ffn_dim": 96, "activation_function": "relu", "num_hidden_layers": 2, "hidden_size": 32,
    "word_embed_proj_dim": 32, "tie_word_embeddings": True,
}  # fmt: skip
TEXT = [list(range(40, 60)), [3, 200, 77, 4, 9]]


def written(folder: Path, **options: Any) -> dict[str, Any]:
    return bundle(folder, read_config(folder), open_source(Checkpoint.open(folder), None), **options)


@pytest.fixture(scope="module", params=["gated", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = RELU_LLAMA if request.param == "gated" else OPT
    found = fake_model.write(tmp_path_factory.mktemp("relu") / "m", **config)
    written(found)
    return found


def logits(loaded: Any, tokens: list[int]) -> torch.Tensor:
    """Of a prompt, its last token in a step of its own."""
    cache, found = DenseCache(), []
    with torch.inference_mode():
        for part, start in ((tokens[:-1], 0), (tokens[-1:], len(tokens) - 1)):
            view = DenseView(cache, [0], [len(part)])
            positions = torch.arange(start, start + len(part))
            found.append(loaded.model.logits(loaded.model.forward(torch.tensor(part), positions, view)))
    return torch.cat(found)


@pytest.mark.parametrize("slots", [16, 40, 96])
def test_the_numbers_of_the_dense_model_with_any_room(folder: Path, slots: int) -> None:
    ledger, dense = Ledger(256 << 20), load_model(folder)
    least = load_model(folder, weights="sparse-ffn").stream
    per_slot = (load_model(folder, weights="sparse-ffn", room=lambda *_: Room(1 << 30, 1 << 30)).stream.passing_bytes
                - least.passing_bytes) // 80  # fmt: skip
    room = least.num_bytes + (slots - 16) * per_slot
    sparse = load_model(folder, weights="sparse-ffn", room=lambda *_: Room(room, room), ledger=ledger)
    assert sparse.stream.neuron_slots == slots
    for tokens in TEXT:
        assert torch.allclose(logits(sparse, tokens), logits(dense, tokens), rtol=1e-4, atol=1e-5)
    c, layers = sparse.neurons.counters, len(sparse.model.spec.blocks)
    width = sparse.model.spec.hidden_size * 4 * (2 if sparse.model.spec.blocks[0].mlp.gated else 1)
    assert c.bytes_read == c.misses * width
    assert c.dense_bytes == 2 * len(TEXT) * layers * 96 * width
    assert c.misses <= 96 * layers or slots < 96
    assert c.hits > 0 or slots < 96
    assert ledger.leased_by("weights") == sparse.model.weight_bytes + sparse.neurons.num_bytes
    sparse.close()
    assert ledger.leased_bytes == 0
    with pytest.raises(ModelError):
        logits(sparse, TEXT[0])


def test_greedy_answers_are_those_of_the_dense_model_batched_or_not(folder: Path) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    with LLM(str(folder), memory="4GiB", weights="resident") as llm:
        wanted = [llm.generate(tokens, params)[0].token_ids for tokens in TEXT]
    with LLM(str(folder), memory="4GiB", weights="sparse-ffn") as llm:
        assert [out.token_ids for out in llm.generate(TEXT, params)] == wanted
        assert [llm.generate(tokens, params)[0].token_ids for tokens in TEXT] == wanted
        assert llm.stats()["model"]["weights"] == "sparse-ffn: 96 of 96 neurons of a layer in memory"
        assert llm.stats()["model"]["neurons"]["hits"] > 0


def test_only_active_neurons_are_read(tmp_path: Path) -> None:
    """One token, and layers where exactly the neurons with a positive bias can be active."""
    config = OPT | {"num_hidden_layers": 1}
    model = fake_model.write(tmp_path / "m", **config)
    tensors = fake_model.weights(fake_model.CONFIG | config)
    (name,) = [n for n in tensors if n.endswith("fc1.bias")]
    tensors[name] = torch.full_like(tensors[name], -100.0)
    tensors[name][[3, 4, 5, 90]] = 100.0
    fake_model.save(model, tensors)
    written(model)
    sparse = load_model(model, weights="sparse-ffn")
    logits(sparse, [5, 6])
    c = sparse.neurons.counters
    assert (c.misses, c.hits, c.num_reads, c.bytes_read) == (4, 4, 2, 4 * 32 * 4)
    sparse.close()


def test_a_predictor_with_a_wide_margin_reads_all_and_is_exact_and_one_without_reads_less(tmp_path: Path) -> None:
    model = fake_model.write(tmp_path / "m", **RELU_LLAMA)
    dense = load_model(model, quantization="none")
    found = {}
    for margin in (1e4, 0.0):
        written(model, rank=8, margin=margin, loaded=dense, calibration=TEXT)
        sparse = load_model(model, weights="sparse-ffn")
        error = (logits(sparse, TEXT[0]) - logits(dense, TEXT[0])).abs().max()
        found[margin] = (sparse.neurons.counters.hits + sparse.neurons.counters.misses, float(error))
        sparse.close()
    assert found[1e4][0] == 2 * 3 * 96
    assert found[1e4][1] < 1e-4
    assert found[0.0][0] < found[1e4][0]
    assert found[0.0][1] < 0.1 * float(logits(dense, TEXT[0]).abs().max())


def test_refusals(tmp_path: Path, folder: Path) -> None:
    silu = fake_model.write(tmp_path / "silu")
    with pytest.raises(ModelError, match=r"needs an activation that leaves neurons at zero \(relu, relu2\).*is silu"):
        written(silu)
    with pytest.raises(ModelError, match="needs an activation that leaves neurons at zero"):
        load_model(silu, weights="sparse-ffn")
    with pytest.raises(ConfigError, match="reads plain neurons, not int8"):
        load_model(folder, weights="sparse-ffn", quantization="int8")
    with pytest.raises(WeightsError, match="holds F32, the model runs in bfloat16"):
        load_model(folder, weights="sparse-ffn", dtype="bfloat16")
    with pytest.raises(ConfigError, match="rank is 32; give 0"):
        written(folder, rank=32)


def test_a_bundle_that_is_missing_anothers_or_changes(tmp_path: Path) -> None:
    model = fake_model.write(tmp_path / "m", **OPT)
    with pytest.raises(ModelError, match="`pagoda bundle` writes it"):
        load_model(model, weights="sparse-ffn")
    written(model)
    sparse = load_model(model, weights="sparse-ffn")
    os.utime(model / FILE, ns=(0, 0))
    with pytest.raises(WeightsError, match=r"changed while tensor 'layers.0.rows' was read"):
        logits(sparse, [5, 6])
    sparse.close()
    (model / FILE).write_bytes((model / FILE).read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        load_model(model, weights="sparse-ffn")
    written(model)
    tensors = fake_model.weights(fake_model.CONFIG | OPT)
    fake_model.save(model, {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(WeightsError, match="was made from other weights"):
        load_model(model, weights="sparse-ffn")


def test_neighbours_are_read_together() -> None:
    assert neighbours(np.array([1, 2, 3, 7, 9, 10]), 8) == [(1, 3), (7, 1), (9, 2)]
    assert neighbours(np.arange(5), 2) == [(0, 2), (2, 2), (4, 1)]
