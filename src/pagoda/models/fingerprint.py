"""Short names for exactly these weights, run exactly this way: what cached KV is keyed with. No torch.

Hashing whole checkpoints would cost a full read of gigabytes. Instead the hash covers the config, every file's header
(names, dtypes, shapes, sizes) and, of every tensor, one block in its middle (all of it where it is smaller). That
tells models apart, not every edit: where only some rows were trained (those of added tokens) a block elsewhere is as
it was. What must never be mistaken has the files' ``stamps`` in its hash too.
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


def stamps(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """(bytes, nanoseconds of the last change) of each file: whatever writes to a checkpoint changes them.

    A copy that does not keep times is another model to who asks for these.
    """
    found = [os.stat(file) for file in checkpoint.files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in found]


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
