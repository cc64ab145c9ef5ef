"""A short name for exactly these weights, run exactly this way: what cached KV is keyed with. No torch.

Hashing whole checkpoints would cost a full read of gigabytes. Instead the hash covers the config, every file's header
(names, dtypes, shapes, sizes) and, of every tensor, one block in its middle (all of it where it is smaller).
Training, merging or quantizing a tensor changes nearly all of its values, so the block changes with it; an edit by
hand of a few numbers elsewhere in a tensor is not seen. Times and paths are left out: a copy has the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from pagoda.weights.reader import Checkpoint

BLOCK_BYTES = 4096
_NO_MATTER = ("transformers_version", "_name_or_path", "use_cache")  # config keys that change no number


def fingerprint(checkpoint: Checkpoint, config: Mapping[str, Any], *how: object) -> str:
    """32 hex digits. ``how`` is whatever else decides the numbers: dtype, rotary length, native or fallback."""
    digest = hashlib.blake2b(digest_size=16)
    settled = {key: value for key, value in config.items() if key not in _NO_MATTER}
    digest.update(json.dumps([settled, [str(h) for h in how]], sort_keys=True).encode())
    for file in checkpoint.files:
        fd = os.open(file, os.O_RDONLY)
        try:
            for entry in (e for e in checkpoint.entries.values() if e.file == file):
                digest.update(repr((entry.name, entry.dtype, entry.shape, entry.num_bytes)).encode())
                at = max(0, entry.num_bytes - BLOCK_BYTES) // 2
                digest.update(os.pread(fd, min(BLOCK_BYTES, entry.num_bytes), entry.offset + at))
        finally:
            os.close(fd)
    return digest.hexdigest()
