from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, ModelError, UnsupportedModelError, WeightsError
from pagoda.kernels.preferred import prefers_bf12
from pagoda.models.dtype_choice import choose_dtype
from pagoda.models.load import load_model
from pagoda.weights.reader import Checkpoint

from . import fake_model
from .test_quantized import logits
from .tokenizer_samples import data

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_model.write(tmp_path / "model")


@pytest.mark.parametrize("num_shards", [1, 3])
def test_weights_arrive(tmp_path: Path, num_shards: int) -> None:
    calls: list[tuple[int, int]] = []
    path = fake_model.write(tmp_path / "m", num_shards=num_shards)
    loaded = load_model(path, quantization="none", progress=lambda done, total: calls.append((done, total)))
    tensors = fake_model.weights(fake_model.CONFIG)
    total = sum(t.nbytes for t in tensors.values())
    assert loaded.model.weight_bytes == total == loaded.shape.weight_bytes("float32")
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)
    same = torch.equal(loaded.model.weights()["embed.weight"], tensors["model.embed_tokens.weight"])
    assert same
    assert loaded.path == path


def test_unquantized_weights_lie_in_the_kernels_order(folder: Path) -> None:
    """By default, where the C++ kernels serve; the numbers are the checkpoint's, their bytes are known beforehand."""
    kernels = pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")
    short = "bf12" if prefers_bf12(kernels.best_isa()) else "bf16"
    for dtype, name in (("float32", "fp32"), ("bfloat16", short)):
        loaded = load_model(folder, dtype=dtype)
        embed = loaded.model.weights()["embed.weight"]
        assert (embed.format.name, loaded.model.op_by_op) == (name, None)
        wanted = fake_model.weights(fake_model.CONFIG)["model.embed_tokens.weight"].to(getattr(torch, dtype))
        assert torch.equal(embed.dense(), wanted)
        planned = loaded.shape.weight_bytes(dtype, loaded.quantization)
        assert loaded.model.weight_bytes == planned + loaded.model.beyond_bytes


def test_a_float16_checkpoint_stays_so_in_memory(tmp_path: Path) -> None:
    """It runs in float32, with the bits of the same numbers in float32."""
    pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")
    half = fake_model.write(tmp_path / "half", dtype=torch.float16, **fake_model.CONFIG)
    ours, wide = load_model(half), load_model(half, quantization="fp32")
    assert (ours.dtype, str(ours.quantization), ours.model.op_by_op) == ("float32", "fp16", None)
    assert ours.model.weight_bytes < 0.55 * wide.model.weight_bytes
    assert torch.equal(logits(ours.model), logits(wide.model))


def test_stories_as_they_come() -> None:
    loaded = load_model(data("models/stories260K"))
    assert (loaded.eos_ids, loaded.generation["do_sample"], loaded.dtype) == ((1, 2), False, "float32")
    assert loaded.chat_template is None


def test_dtype_is_converted(folder: Path) -> None:
    loaded = load_model(folder, dtype="bfloat16", quantization="none")
    assert loaded.dtype == "bfloat16"
    assert loaded.model.weight_bytes == loaded.shape.weight_bytes("bfloat16")
    wanted = fake_model.weights(fake_model.CONFIG)["model.embed_tokens.weight"].to(torch.bfloat16)
    assert torch.equal(loaded.model.weights()["embed.weight"], wanted)


@pytest.mark.parametrize(
    ("stored", "config", "num_params", "device", "expected"),
    [
        (torch.bfloat16, {"torch_dtype": "bfloat16"}, 10, "cpu", "float32"),
        (torch.bfloat16, {"torch_dtype": "bfloat16"}, 33_000_000, "cpu", "bfloat16"),
        (torch.float16, {"dtype": "float16"}, 33_000_000, "cpu", "float32"),
        (torch.float16, {"dtype": "float16"}, 33_000_000, "cuda", "float16"),
        (torch.bfloat16, {}, 10, "cuda", "bfloat16"),
        (torch.float16, {"text_config": {"dtype": "torch.bfloat16"}}, 10, "cuda", "bfloat16"),
        (torch.float32, {"torch_dtype": "float32"}, 10, "cpu", "float32"),
        (torch.int8, {}, 10, "cpu", "float32"),
    ],
)
def test_auto_dtype(
    tmp_path: Path, stored: torch.dtype, config: dict[str, object], num_params: int, device: str, expected: str
) -> None:
    save_file({"w": torch.zeros(num_params, dtype=stored)}, tmp_path / "model.safetensors")
    name, reason = choose_dtype("auto", config, Checkpoint.open(tmp_path), torch.device(device))
    assert name == expected
    assert reason


def test_what_the_folder_says(folder: Path) -> None:
    assert load_model(folder).eos_ids == (7,)
    generation = {"temperature": 0.6, "top_k": 20, "top_p": None, "eos_token_id": 5, "unknown": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    loaded = load_model(folder)
    assert loaded.generation == {"temperature": 0.6, "top_k": 20, "eos_token_id": [5]}
    assert loaded.eos_ids == (5,)
    assert loaded.chat().render([{"role": "user", "content": "hi"}]) == "hi!"
    assert loaded.chat("{{ 1 + 1 }}").render([{"role": "user", "content": "hi"}]) == "2"


@pytest.mark.parametrize("value", [{"temperature": "hot"}, {"top_k": 1.5}, {"do_sample": 1}, {"eos_token_id": ["a"]}])
def test_bad_generation_config_is_named(folder: Path, value: dict[str, object]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(value))
    with pytest.raises(ModelError, match=next(iter(value))):
        load_model(folder)


def test_weights_that_do_not_fit_the_architecture(folder: Path) -> None:
    good = fake_model.weights(fake_model.CONFIG)
    name = "model.layers.1.mlp.down_proj.weight"
    fake_model.save(folder, {n: t for n, t in good.items() if n != name})
    with pytest.raises(WeightsError, match=f"missing.*{name}"):
        load_model(folder)
    fake_model.save(folder, good | {"model.layers.0.mystery": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"unexpected tensor 'model\.layers\.0\.mystery'"):
        load_model(folder)
    fake_model.save(folder, good | {name: torch.zeros(3, 5)})
    with pytest.raises(WeightsError, match=rf"{name}' has shape \[3, 5\]"):
        load_model(folder)


BAD = {
    "dtype": (lambda f: None, {"dtype": "fp61"}, ConfigError, "unknown dtype 'fp61'; accepted: auto, bfloat16"),
    "device": (lambda f: None, {"device": "toaster"}, ConfigError, "unknown device 'toaster'; accepted: auto, cpu"),
    "cuda": (lambda f: None, {"device": "cuda:99"}, ConfigError, "torch sees . CUDA devices"),
    "other device": (lambda f: None, {"device": "meta"}, ConfigError, "unknown device 'meta'"),
    "no config": (lambda f: (f / "config.json").unlink(), {}, ModelError, "no config.json"),
    "config": (lambda f: (f / "config.json").write_text("{"), {}, ModelError, "not valid JSON"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), {}, ModelError, "no tokenizer; expected"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), {}, WeightsError, "no weights; expected"),
    "quantized": (
        lambda f: _config(f, quantization_config={"quant_method": "quip"}), {}, ModelError, "quant_method 'quip'"
    ),
    "architecture": (lambda f: _config(f, model_type="frobnicator"), {}, UnsupportedModelError, "'frobnicator'"),
    "no type": (lambda f: _config(f, model_type=None), {}, ModelError, "model_type"),
}  # fmt: skip


def _config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(fake_model.CONFIG | changes))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(folder: Path, name: str) -> None:
    damage, options, kind, words = BAD[name]
    damage(folder)
    with pytest.raises(kind, match=words) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)


def test_bytes_are_leased_before_they_are_read(folder: Path) -> None:
    ledger = Ledger(64 << 20)
    loaded = load_model(folder, ledger=ledger)
    assert ledger.leased_by("weights") == loaded.model.weight_bytes
    assert ledger.leased_by("staging") == ledger.leased_by("runtime") == 0
    assert ledger.leased_by("tokenizer") > 0
    report = next(a for a in ledger.report().accounts if a.account == "weights")
    assert report.resident_bytes == loaded.model.weight_bytes
    loaded.close()
    loaded.close()
    assert ledger.leased_bytes == 0


def test_leases_go_back_on_failure(folder: Path) -> None:
    small = Ledger(10 << 20)
    (folder / "config.json").write_text(json.dumps(fake_model.CONFIG | {"vocab_size": 100_000}))
    read: list[int] = []
    with pytest.raises(BudgetError):
        load_model(folder, ledger=small, progress=lambda done, _: read.append(done))
    assert (small.leased_bytes, read) == (0, [])
    (folder / "config.json").write_text(json.dumps(fake_model.CONFIG))
    good = fake_model.weights(fake_model.CONFIG)
    fake_model.save(folder, dict(list(good.items())[:5]))
    ledger = Ledger(64 << 20)
    with pytest.raises(WeightsError):
        load_model(folder, ledger=ledger)
    assert ledger.leased_bytes == 0


def test_transformers_is_leased_when_it_comes(tmp_path: Path) -> None:
    code = """
import sys
from pagoda.budget.ledger import Ledger
from pagoda.models.load import load_model
ledger = Ledger(1 << 30)
loaded = load_model(sys.argv[1], ledger=ledger)
accounts = {a.account: a for a in ledger.report().accounts}
assert 'transformers' in sys.modules
print(accounts['runtime'].leased_bytes, accounts['runtime'].resident_bytes)
loaded.close()
assert ledger.leased_bytes == 0
"""
    pytest.importorskip("transformers")
    from . import fallback_models

    folder = fallback_models.save(fallback_models.reference("olmo"), tmp_path / "m")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    leased, resident = map(int, done.stdout.split())
    assert (60 << 20) < resident <= leased


def test_fingerprint_follows_the_numbers(folder: Path, tmp_path: Path) -> None:
    first = load_model(folder).fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # with its times
    assert load_model(copy).fingerprint == first
    assert load_model(copy, dtype="bfloat16").fingerprint != first
    tensors = fake_model.weights(fake_model.CONFIG)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    fake_model.save(copy, tensors)
    assert load_model(copy).fingerprint != first
    _config(folder, rms_norm_eps=1e-5)
    assert load_model(folder).fingerprint != first


def test_fingerprint_follows_one_row(folder: Path) -> None:
    """As where only the rows of added tokens were trained."""
    first = load_model(folder).fingerprint
    tensors = fake_model.weights(fake_model.CONFIG)
    tensors["model.embed_tokens.weight"][-1] += 1
    fake_model.save(folder, tensors)
    assert load_model(folder).fingerprint != first


PEAK = """
import sys
import torch
from pagoda.models import families, load
def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
torch.ones(8, 8).to(torch.bfloat16) @ torch.ones(8, 8).to(torch.bfloat16)
before = peak()
loaded = load.load_model(sys.argv[1], dtype='bfloat16')
print(peak() - before, loaded.model.weight_bytes)
"""


def test_peak_memory_of_loading(tmp_path: Path) -> None:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10, "vocab_size": 8000}
    fake_model.write(tmp_path / "m", dtype=torch.bfloat16, **sizes)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "m")], check=True, capture_output=True, text=True)
    growth, model = map(int, done.stdout.split())
    largest = 8000 * 768 * 2
    assert model > 140 << 20  # in 12 bits; 190 in 16
    assert growth <= model + largest + (64 << 20)
