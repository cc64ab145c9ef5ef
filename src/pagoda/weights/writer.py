"""Writes tensors to a safetensors file so that nobody ever sees half of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """All of ``tensors`` into ``file``, under another name until they are complete and on disk. Raises WeightsError."""
    from safetensors.torch import save_file

    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        save_file(dict(tensors), unfinished)
        with open(unfinished, "rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise WeightsError(f"{file}: cannot be written ({error.strerror or error})") from error
