"""Writes tensors to a safetensors file so that nobody ever sees half of it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import WeightsError
from .direct import ALIGN
from .header import DTYPE_SIZES

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


def write_stream(file: Path, entries: Sequence[tuple[str, str, tuple[int, ...]]], tensors: Iterable[Tensor]) -> None:
    """As `write_tensors`, one tensor after another: name, safetensors dtype and shape of each are known before.

    The first begins on a page, so that rows of whole pages are read with no neighbour's bytes. Raises WeightsError.
    """
    import torch

    unfinished, at, header = file.with_name(f".{file.name}.unfinished"), 0, {}
    for name, dtype, shape in entries:
        end = at + prod(shape) * DTYPE_SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    try:
        with open(unfinished, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for (name, _, shape), tensor in zip(entries, tensors, strict=True):
                assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} is not {shape}"
                out.write(memoryview(tensor.contiguous().view(torch.uint8).numpy()))  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(file)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be written ({error.strerror or error})") from error
    finally:
        unfinished.unlink(missing_ok=True)
