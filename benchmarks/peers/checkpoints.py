"""Random-weight model folders in the hub's form, and the forms that peers read, made once by the peers' own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .shapes import Shape

ROOT = Path(__file__).parents[2]


class FormError(RuntimeError):
    """A checkpoint form could not be made; the message ends with the converter's last line."""


def model_folder(models: Path, shape: Shape) -> Path:
    """The Hugging Face folder of ``shape`` under ``models``, made if it is not there."""
    folder = models / shape.name
    if not (folder / "model.safetensors").exists():
        write_model(folder, shape.config())
    return folder


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """bf16 weights ~ N(0, 0.02), norms 1, from a fixed seed; a byte-level tokenizer of the whole vocabulary."""
    import torch
    from safetensors.torch import save_file

    from pagoda.models.model import Model

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    _write_tokenizer(folder, config["vocab_size"])
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(size, dtype=torch.bfloat16)
        if name.endswith("norm.weight")
        else (torch.randn(size, generator=generator) * 0.02).bfloat16()
        for name, size in Model.from_config(config).expected_tensors().items()
    }
    fresh = folder / "model.partial"
    save_file(tensors, fresh, metadata={"format": "pt"})
    fresh.rename(folder / "model.safetensors")


def _write_tokenizer(folder: Path, vocab: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", *letters, *(f"<|{i}|>" for i in range(len(letters) + 1, vocab))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def form_path(folder: Path, form: str | None, weights: str) -> Path:
    """Where that form of the model in ``folder`` lies; ``form`` None is the folder itself."""
    return folder if form is None else folder.with_name(f"{folder.name}-{form}-{weights}")


def make_form(python: str, folder: Path, form: str | None, weights: str, *, seconds: float, prefix: list[str]) -> Path:
    """Runs ``forms/<form>.py`` in the peer's environment unless its result is there. Raises FormError.

    The converter writes to a name of its own first, so that an interrupted one leaves nothing that looks whole.
    """
    target = form_path(folder, form, weights)
    if form is None or target.exists():
        return target
    fresh = target.with_name(target.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    command = [*prefix, python, "-m", f"benchmarks.peers.forms.{form}", str(folder), weights, str(fresh)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise FormError(f"{form} {weights} of {folder.name} took longer than {seconds:.0f} s") from error
    if done.returncode:
        raise FormError(f"{form} {weights} of {folder.name}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    fresh.rename(target)
    return target
