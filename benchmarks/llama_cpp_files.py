"""GGUF files made by llama.cpp's own quantizer, read here and compared with llama.cpp and with transformers.

    python -m benchmarks.llama_cpp_files make FOLDER       with llama-cpp-python and gguf in their own environment
    python -m benchmarks.llama_cpp_files compare FOLDER    with Pagoda

``make`` writes a small Llama of random weights in F16, lets llama.cpp quantize it to every type that we read, and keeps
the logits that llama.cpp computes from each. ``compare`` says how far our logits are from those, and from transformers'
with the weights that the gguf package unpacks from the same file. llama.cpp rounds activations to 8 bits for its
products and transformers does not, so the second distance is the one that must vanish.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path
from typing import Any

HIDDEN, MIDDLE, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 512, 2, 4, 2, 320
IDS = [3, 17, 200, 41, 8, 99, 250, 7, 120, 65, 66]
TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")


def byte_letters() -> list[str]:
    """The letters that stand for bytes in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def write_plain(file: Path) -> None:
    """The model that is quantized, by the gguf package."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    words = ["<s>", "</s>", *byte_letters(), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words + [f"<unused{n}>" for n in range(VOCAB - len(words))])
    writer.add_token_types([3, 3] + [1] * (len(words) - 2) + [5] * (VOCAB - len(words)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def matrix(name: str, rows: int, cols: int) -> None:
        writer.add_tensor(f"{name}.weight", (rng.standard_normal((rows, cols)) / cols**0.5).astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", (1 + 0.1 * rng.standard_normal(HIDDEN)).astype(np.float32))

    matrix("token_embd", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        norm(f"blk.{layer}.attn_norm")
        for part, rows in (("q", HIDDEN), ("k", HIDDEN * KV_HEADS // HEADS), ("v", HIDDEN * KV_HEADS // HEADS)):
            matrix(f"blk.{layer}.attn_{part}", rows, HIDDEN)
        matrix(f"blk.{layer}.attn_output", HIDDEN, HIDDEN)
        norm(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_gate", MIDDLE, HIDDEN)
        matrix(f"blk.{layer}.ffn_up", MIDDLE, HIDDEN)
        matrix(f"blk.{layer}.ffn_down", HIDDEN, MIDDLE)
    norm("output_norm")
    matrix("output", VOCAB, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path) -> None:
    import llama_cpp
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "F16.gguf"
    write_plain(plain)
    for name in TYPES:
        file = folder / f"{name}.gguf"
        if name != "F16":
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
            if llama_cpp.llama_model_quantize(str(plain).encode(), str(file).encode(), ctypes.byref(options)):
                raise SystemExit(f"llama.cpp did not quantize to {name}")
        model = llama_cpp.Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
        model.eval(IDS)
        np.save(file.with_suffix(".npy"), np.array(model.scores[: len(IDS)]))
        print(f"{name}: {file.stat().st_size} bytes", flush=True)


def in_transformers(file: Path) -> Any:
    """The file's model as transformers runs it, unpacked by the gguf package."""
    import gguf
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=MIDDLE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=VOCAB, rms_norm_eps=1e-5, max_position_embeddings=256,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[names.get_name(name, try_suffixes=(".weight",))]
            values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            if "q_proj" in name or "k_proj" in name:  # rotary pairs lie side by side in the file
                heads = HEADS if "q_proj" in name else KV_HEADS
                values = values.view(heads, -1, 2, HIDDEN).transpose(1, 2).reshape(values.shape)
            parameter.copy_(values.view(parameter.shape))
    return model


def compare(folder: Path) -> list[dict[str, Any]]:
    """Our logits of every file beside llama.cpp's and transformers'."""
    import numpy as np
    import torch

    from pagoda.models.load import load_model
    from pagoda.models.quantize import run
    from pagoda.weights.gguf_parts import read_parts

    rows = []
    for name in TYPES:
        file = folder / f"{name}.gguf"
        theirs = torch.from_numpy(np.load(file.with_suffix(".npy"))).float()
        with torch.inference_mode():
            unpacked = in_transformers(file)(torch.tensor([IDS])).logits[0]
        loaded = load_model(file, dtype="float32")
        (found,) = run(loaded.model._ready(), [IDS])  # type: ignore[union-attr]
        loaded.close()
        rows.append(
            {
                "file": file.name,
                "types": sorted({tensor.kind for tensor in read_parts(file).tensors.values()}),
                "from_transformers": _away(found, unpacked),
                "from_llama_cpp": _away(found, theirs),
                "same_tokens_as_llama_cpp": float((found.argmax(-1) == theirs.argmax(-1)).float().mean()),
            }
        )
    return rows


def _away(found: Any, wanted: Any) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder)
        return
    for row in compare(args.folder):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
