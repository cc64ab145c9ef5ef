"""Safetensors files for tests, good and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.arange(6, dtype=torch.bfloat16),
    "c.scale": torch.tensor(2.5, dtype=torch.float16),
    "d.none": torch.empty(0, 4),
}


def single(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded(folder: Path) -> Path:
    names = {"a.weight": 1, "b.weight": 2, "c.scale": 2, "d.none": 1}
    for shard in (1, 2):
        part = {n: TENSORS[n] for n, s in names.items() if s == shard}
        save_file(part, folder / f"model-{shard}.safetensors")
    weight_map = {n: f"model-{s}.safetensors" for n, s in names.items()}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def raw(folder: Path, header: object, data: bytes = b"", num_bytes: int | None = None) -> Path:
    """A file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if num_bytes is None else num_bytes) + text + data)
    return file


def f32(begin: int, end: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
