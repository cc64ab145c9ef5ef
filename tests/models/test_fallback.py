from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagoda.core.errors import ModelError, UnsupportedModelError, WeightsError
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models import families
from pagoda.models.load import load_model

from . import fallback_models as small

pytest.importorskip("transformers")
from pagoda.models.fallback import FallbackModel
from pagoda.models.fallback_check import small_config

TOKENS = 64


class Batch:
    """Sequences that grow side by side over one dense cache."""

    def __init__(self, model: FallbackModel) -> None:
        self.model, self.cache, self.done = model, DenseCache(), dict[int, int]()

    def step(self, chunks: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Runs one chunk of each sequence; logits ``[n, vocab]`` of every chunk."""
        lengths = [len(ids) for ids in chunks.values()]
        starts = [self.done.get(s, 0) for s in chunks]
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
        tokens = torch.tensor([i for ids in chunks.values() for i in ids])
        view = DenseView(self.cache, list(chunks), lengths)
        logits = self.model.logits(self.model.forward(tokens, positions, view))
        self.done |= {s: a + n for s, a, n in zip(chunks, starts, lengths, strict=True)}
        return dict(zip(chunks, logits.split(lengths), strict=True))


def prompts(vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in (37, 5, 1)]


def is_greedy(model: Any, ids: list[int], out: list[int]) -> bool:
    """Whether each token is the model's best after all before it (one pass; the same as generating them greedily)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + out[:-1]]), use_cache=False).logits[0, len(ids) - 1 :]
    return bool(logits.argmax(-1).tolist() == out)


EVERY_DAY = (
    "starcoder2",
    "glm4",
    "nemotron",
    "phi",
    "olmo3",
    "ernie4_5",
    "exaone4",
    "gpt_bigcode",
    "granitemoe",
    "minicpm3",
)


@pytest.mark.parametrize(
    "name", [n if n in EVERY_DAY else pytest.param(n, marks=pytest.mark.slow) for n in small.FAMILIES]
)
def test_same_as_transformers(tmp_path: Path, name: str) -> None:
    theirs = small.reference(name)
    loaded = load_model(small.save(theirs, tmp_path / "m"), dtype="float32")
    ours = loaded.model
    assert isinstance(ours, FallbackModel)
    assert ours.weight_bytes == loaded.shape.weight_bytes("float32") == sum(p.nbytes for p in theirs.parameters())
    texts = prompts(theirs.config.vocab_size)
    batch = Batch(ours)
    with torch.no_grad():
        wanted = [theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in texts]
    # Chunked and ragged: the long prompt in three pieces, the others beside them.
    first = batch.step({0: texts[0][:20], 1: texts[1][:2]})
    second = batch.step({1: texts[1][2:], 0: texts[0][20:21]})
    third = batch.step({0: texts[0][21:], 2: texts[2]})
    found = [torch.cat([first[0], second[0], third[0]]), torch.cat([first[1], second[1]]), third[2]]
    for f, w in zip(found, wanted, strict=True):
        assert torch.allclose(f, w, atol=2e-5 * float(w.abs().max()), rtol=0)
    last = [int(f[-1].argmax()) for f in found]
    out = [[token] for token in last]
    for _ in range(TOKENS - 1):
        logits = batch.step({s: [tokens[-1]] for s, tokens in enumerate(out)})
        for s, tokens in enumerate(out):
            tokens.append(int(logits[s][-1].argmax()))
    assert all(is_greedy(theirs, ids, tokens) for ids, tokens in zip(texts, out, strict=True))


def test_none_of_them_is_native() -> None:
    assert not set(small.FAMILIES) & set(families.names())


def test_agrees_with_a_native_family() -> None:
    config = small.config("llama").to_dict()
    theirs = FallbackModel.from_config(config).init_random()
    native = families.read_spec(config)
    assert native.vocab_size == theirs.shape.vocab_size
    from pagoda.models.model import Model

    model = Model.from_config(config)
    for weight, tensor in theirs.weights().items():
        model.load_tensor(weight, tensor)
    model.finish_loading()
    ids = torch.arange(5, 25)
    view = lambda: DenseView(DenseCache(), [0], [20])  # noqa: E731
    with torch.no_grad():
        hidden = model.forward(ids, torch.arange(20), view())
        assert torch.allclose(hidden, theirs.forward(ids, torch.arange(20), view()), atol=1e-5)
    assert model.shape.num_params == theirs.shape.num_params
    assert model.shape.kv_format(16, "float32") == theirs.shape.kv_format(16, "float32")


REFUSED = {
    "mamba": "recurrent state|linear_attention",
    "rwkv": "recurrent state",
    "jamba": "linear_attention|recurrent state",
    "recurrent_gemma": "linear_attention|recurrent state",
    "t5": "encoder-decoder",
    "bart": "encoder-decoder",
    "bert": "differs from its own attention",
    "vit": "no causal language model",
    "llama4_text": "chunked_attention",
    "mllama": "vision-language",
    "minimax": "linear_attention",
    "xlm": "does not go through transformers' attention interface",
    "xglm": "does not go through transformers' attention interface",
    "deepseek_v32": "indexed_attention",
    "diffllama": "exactly once a pass",
    "doge": "mask of its own",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    import transformers

    config = transformers.CONFIG_MAPPING[name]().to_dict()
    with pytest.raises(
        UnsupportedModelError, match=f"'{name}' cannot run on a paged KV cache: .*({REFUSED[name]})"
    ) as e:
        FallbackModel.from_config(config)
    assert "\n" not in str(e.value)


def test_unknown_architectures() -> None:
    with pytest.raises(UnsupportedModelError, match="'frobnicator' is neither native nor known to transformers"):
        FallbackModel.from_config({"model_type": "frobnicator"})
    with pytest.raises(UnsupportedModelError, match="never run"):
        FallbackModel.from_config({"model_type": "frobnicator", "auto_map": {}})
    with pytest.raises(ModelError, match="olmo config: transformers refuses it"):
        FallbackModel.from_config({"model_type": "olmo", "hidden_size": "wide"})


@pytest.mark.parametrize("name", ["olmo", "granitemoe"])
def test_checkpoints_that_do_not_fit(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    small.reference(name).save_pretrained(folder)
    from .tokenizer_samples import byte_level

    byte_level().save(str(folder / "tokenizer.json"))
    file = folder / "model.safetensors"
    good = load_file(file)
    gone = next(n for n in good if "layers.1.self_attn.o_proj" in n)
    for tensors, words in (
        ({n: t for n, t in good.items() if n != gone}, f"missing.*{gone}"),
        (good | {"model.mystery": torch.zeros(2)}, "unexpected.*mystery"),
        (good | {gone: torch.zeros(3, 5)}, f"wrong shape.*{gone}"),
    ):
        save_file(tensors, file)
        with pytest.raises(WeightsError, match=words) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)


def test_dtype_and_lease(tmp_path: Path) -> None:
    from pagoda.budget.ledger import Ledger

    folder = small.save(small.reference("granitemoe"), tmp_path / "m")
    ledger = Ledger(64 << 20)
    loaded = load_model(folder, dtype="bfloat16", ledger=ledger)
    assert {w.dtype for w in loaded.model.weights().values()} == {torch.bfloat16}
    assert ledger.leased_by("weights") == loaded.model.weight_bytes == loaded.shape.weight_bytes("bfloat16")
    loaded.close()
    assert ledger.leased_bytes == 0


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_length_dependent_rotary_is_settled_once(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 32}
    theirs = small.reference("olmo", rope_parameters=rope, max_position_embeddings=32)
    config = theirs.config.to_dict()
    ids = torch.arange(3, 83) % 300
    with torch.no_grad():
        wanted = theirs(input_ids=ids[None], use_cache=False).logits[0]
    ours = FallbackModel.from_config(config, rope_length=80)
    for name, tensor in theirs.state_dict().items():
        ours.load_tensor(name, tensor)
    batch = Batch(ours.finish_loading())
    pieces = [batch.step({0: ids[a:b].tolist()})[0] for a, b in ((0, 10), (10, 40), (40, 80))]
    assert torch.allclose(torch.cat(pieces), wanted, atol=3e-5 * float(wanted.abs().max()), rtol=0)


def test_the_small_copy_shows_every_kind_of_layer() -> None:
    import transformers

    kinds = ["full_attention", "sliding_attention"]
    pattern = [kinds[i % 6 != 5] for i in range(30)]
    config = transformers.AutoConfig.for_model("gemma3_text", num_hidden_layers=30, layer_types=pattern)
    copy = small_config(config)
    assert set(copy["layer_types"]) == set(kinds)
    assert len(copy["layer_types"]) == copy["num_hidden_layers"] <= 8
    assert copy["sliding_window"] == 5
    json.dumps(copy)


def test_not_loaded_yet() -> None:
    model = FallbackModel.from_config(small.config("olmo").to_dict())
    with pytest.raises(ModelError, match="not loaded"):
        model.logits(torch.zeros(1, 64))
    assert model.weights() == {}
    with pytest.raises(WeightsError, match="stored as torch.int8"):
        model.load_tensor("x", torch.zeros(2, dtype=torch.int8))
    assert model.load_tensor("mask", torch.ones(2, dtype=torch.bool)) is False
