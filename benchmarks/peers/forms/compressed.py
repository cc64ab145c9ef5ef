"""compressed-tensors, as vLLM reads them: int8 is w8a8 (weights by channel, activations by token), int4 is w4a16.

Layer matrices only; embedding and head stay bf16, as in the checkpoints that are published for vLLM.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

GROUP = 128
WEIGHTS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
    "observer": "minmax",
}


def int8(name: str, weight: Any) -> dict[str, Any]:
    import torch

    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return {
        name: (weight.float() / scale).round().clamp(-127, 127).to(torch.int8),
        f"{name}_scale": scale.to(torch.bfloat16),
    }


def int4(name: str, weight: Any) -> dict[str, Any]:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // GROUP, GROUP)
    scale = groups.abs().amax(2, keepdim=True) / 7
    values = (groups / scale).round().clamp(-8, 7).to(torch.int8).view(rows, columns)
    return {
        f"{name}_packed": pack_to_int32(values, 4),
        f"{name}_scale": scale.squeeze(2).to(torch.bfloat16),
        f"{name}_shape": torch.tensor([rows, columns]),
    }


SCHEMES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "int8": (int8, "int-quantized", {
        "weights": WEIGHTS, "input_activations": WEIGHTS | {"strategy": "token", "dynamic": True, "observer": None},
    }),
    "int4": (int4, "pack-quantized", {
        "weights": WEIGHTS | {"num_bits": 4, "strategy": "group", "group_size": GROUP}, "input_activations": None,
    }),
}  # fmt: skip


def main(folder: str, weights: str, target: str) -> None:
    from safetensors.torch import load_file, save_file

    quantize, layout, scheme = SCHEMES[weights]
    source, out = Path(folder), Path(target)
    out.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, out / name)
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        tensors |= quantize(name, tensor) if name.endswith("proj.weight") else {name: tensor}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], **scheme}},
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
