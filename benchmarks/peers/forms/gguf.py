"""GGUF: bf16 by the gguf package, q8_0 and q4_0 from it by llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and bits (uint16) of every bf16 tensor of a safetensors file."""
    import numpy as np

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    raw = np.memmap(path, np.uint8, "r")[8 + size :]
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, raw[begin:end].view(np.uint16).reshape(entry["shape"])


def interleave_rotary(rows: Any, heads: int) -> Any:
    """llama.cpp rotates neighbouring elements of q and k of the llama family; the hub's files pair halves of a head."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(folder: Path, target: Path) -> None:
    import gguf
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    arch = {a: key for key, a in gguf.MODEL_ARCH_NAMES.items()}[config["model_type"]]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, config["model_type"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, bits in tensors(folder / "model.safetensors"):
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            bits = interleave_rotary(bits, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if bits.ndim == 1:  # norms and biases stay in fp32
            writer.add_tensor(ours, (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(bits).view(np.uint8)
            writer.add_tensor(ours, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder: str, weights: str, target: str) -> None:
    if weights == "bf16":
        write(Path(folder), Path(target))
        return
    import llama_cpp

    plain = Path(target).with_suffix(".bf16")
    write(Path(folder), plain)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = {"int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[weights]
    failed = llama_cpp.llama_model_quantize(str(plain).encode(), target.encode(), ctypes.byref(options))
    plain.unlink()
    if failed:
        sys.exit(f"llama_model_quantize returned {failed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
