"""Checkpoints made by other people's libraries, read here and compared with what those libraries compute.

    python -m benchmarks.foreign make FOLDER LIBRARY …    with the libraries installed, in an environment of their own
    python -m benchmarks.foreign compare FOLDER           with Pagoda

``make`` writes a small Llama of random weights, lets each library quantize it in its usual way, and keeps the weights
that the library itself unpacks from its file. ``compare`` loads every folder both packed and unpacked, and says how far
weights and logits are from those; numbers of a format are exact up to the rounding of their scales.
Libraries: compressed-tensors (through llmcompressor), gptqmodel, autoawq, bitsandbytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 384, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
UNPACKED = "unpacked.safetensors"
IDS = [3, 17, 200, 41, 8, 99, 350, 7, 120]
GROUP = 32


def base(folder: Path) -> Path:
    """The model that everybody quantizes, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.float32).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def texts() -> list[str]:
    return [f"{n} times a story of a fox, a river and {n * 7} stones, told again and again." for n in range(32)]


def compressed_tensors(scheme: str) -> Callable[[Path, Path], None]:
    def make(source: Path, out: Path) -> None:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(source)
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        oneshot(model=model, recipe=recipe)
        model.save_pretrained(out, save_compressed=True)

    return make


def gptq(symmetric: bool) -> Callable[[Path, Path], None]:
    def make(source: Path, out: Path) -> None:
        import os

        os.cpu_count = lambda: 8  # its pool of threads asks for more than half of two processors
        from gptqmodel import GPTQModel, QuantizeConfig

        config = QuantizeConfig(bits=4, group_size=GROUP, sym=symmetric, desc_act=False)
        model = GPTQModel.load(str(source), config, device="cpu")
        model.quantize(texts(), batch_size=1)
        model.save(str(out))

    return make


def awq(source: Path, out: Path) -> None:
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    model = AutoAWQForCausalLM.from_pretrained(str(source), device_map="cpu")
    config = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"}
    model.quantize(
        AutoTokenizer.from_pretrained(source), quant_config=config, calib_data=texts(), max_calib_seq_len=100
    )
    model.save_quantized(str(out))


def bitsandbytes(**options: Any) -> Callable[[Path, Path], None]:
    def make(source: Path, out: Path) -> None:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        model = AutoModelForCausalLM.from_pretrained(source, quantization_config=BitsAndBytesConfig(**options))
        model.save_pretrained(out)

    return make


MAKERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "compressed-int4": ("llmcompressor", compressed_tensors("W4A16")),
    "compressed-int4-asym": ("llmcompressor", compressed_tensors("W4A16_ASYM")),
    "compressed-int8": ("llmcompressor", compressed_tensors("W8A8")),
    "compressed-fp8": ("llmcompressor", compressed_tensors("FP8_DYNAMIC")),
    "gptq": ("gptqmodel", gptq(symmetric=True)),
    "gptq-asym": ("gptqmodel", gptq(symmetric=False)),
    "awq": ("autoawq", awq),
    "bnb-nf4": ("bitsandbytes", bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "bnb-nf4-nested": (
        "bitsandbytes",
        bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    ),
    "bnb-fp4": ("bitsandbytes", bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "bnb-int8": ("bitsandbytes", bitsandbytes(load_in_8bit=True)),
}


def make(folder: Path, names: list[str]) -> None:
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    source = base(folder / "plain")
    for name, (_, maker) in MAKERS.items():
        if names and name not in names:
            continue
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        try:
            maker(source, out)
            for file in source.glob("tokenizer*"):
                shutil.copyfile(file, out / file.name)
            unpack(out, source)
            print(f"{name}: made", flush=True)
        except Exception as error:
            traceback.print_exc(limit=-3)
            print(f"{name}: failed: {type(error).__name__}: {str(error)[:300]}", flush=True)


def unpack(folder: Path, source: Path) -> None:
    """Logits of the plain model with the weights that the library itself unpacks."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(source).to(torch.float32)
    linear = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    weights = awq_weights(folder, linear) if method == "awq" else packed_weights(folder, linear)
    with torch.inference_mode():
        for name, weight in weights.items():
            plain.get_submodule(name).weight.copy_(weight.to(torch.float32))
        save_file({"logits": plain(torch.tensor([IDS])).logits[0].contiguous()}, folder / UNPACKED)


def packed_weights(folder: Path, linear: list[str]) -> dict[str, Any]:
    """What the library's own modules unpack."""
    modules = dict(load_packed(folder).named_modules())
    return {name: dense(modules[name]) for name in linear}


def awq_weights(folder: Path, linear: list[str]) -> dict[str, Any]:
    """What autoawq unpacks (in float16): its modules want a GPU. Norms are among them: scales were moved there."""
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    found = {name.removesuffix(".weight"): tensor for name, tensor in stored.items() if name.endswith(".weight")}
    for name in set(linear) - found.keys():
        parts = (stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        found[name] = dequantize_gemm(*parts, 4, GROUP).T
    return found


def load_packed(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    if method != "gptq":
        return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH).model


def dense(module: Any) -> Any:
    """The weight of a quantized linear layer, by its own library."""
    import torch

    kind = type(module.weight).__name__ if hasattr(module, "weight") else type(module).__name__
    if kind == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(module.weight.data, module.weight.quant_state)
    if kind == "Int8Params":
        scale = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        return module.weight.data.float() * scale.float()[:, None] / 127
    if hasattr(module, "dequantize_weight"):  # gptqmodel
        return module.dequantize_weight().T
    if hasattr(module, "quantization_scheme"):
        from compressed_tensors.compressors import decompress_module

        decompress_module(module)
    return module.weight if isinstance(module.weight, torch.Tensor) else module.weight.data


def compare(folder: Path) -> list[dict[str, Any]]:
    """Our logits of every checkpoint beside the library's."""
    import torch
    from safetensors.torch import load_file

    from pagoda.models.load import load_model
    from pagoda.models.quantize import run

    rows = []
    for out in sorted(path for path in folder.iterdir() if (path / UNPACKED).is_file()):
        wanted = load_file(out / UNPACKED)["logits"]
        (out / UNPACKED).rename(out.parent / f"{out.name}.logits")  # not part of the model
        try:
            for packing in ("auto", "none"):
                loaded = load_model(out, quantization=packing, dtype="float32")
                (found,) = run(loaded.model._ready(), [IDS])  # type: ignore[union-attr]
                away = float((found - wanted).abs().max() / wanted.abs().max())
                same = bool(torch.equal(found.argmax(-1), wanted.argmax(-1)))
                rows.append(
                    {"checkpoint": out.name, "format": str(loaded.quantization), "away": away, "same_tokens": same}
                )
                loaded.close()
        finally:
            (out.parent / f"{out.name}.logits").rename(out / UNPACKED)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(MAKERS)} (default: all)")
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder, args.names)
        return
    for row in compare(args.folder):
        print(json.dumps(row), file=sys.stdout)


if __name__ == "__main__":
    main()
