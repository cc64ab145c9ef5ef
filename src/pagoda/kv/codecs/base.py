"""The contract of KV codecs, and how a model's KV format takes one.

A codec turns the K, or the V, of one slot of one head into bytes and back (``kernels.layout.SlotCodec``). It sees
nothing else, so slots can be written, moved, shared and dropped one by one. What it states about bytes is exact: pages,
pool and ledger count with it. Its ``encode`` and ``decode`` in plain torch are the definition; bodies that decode in
registers (``kernels/csrc/attention_rows.hpp``) are held to them, and a codec that no body knows runs through them.

A codec that comes to write rows otherwise in as many bytes names the new way, ``form(dim)``: pages that an earlier
version left on a disk are not found then (`forms`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError, choices
from ...core.types import DTYPE_BYTES, KVFormat
from . import CODECS

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.layout import SlotCodec


def kv_dtypes() -> list[str]:
    """What ``kv_cache_dtype`` may be."""
    return ["auto", *DTYPE_BYTES, *CODECS.names()]


def with_dtype(fmt: KVFormat, name: str) -> KVFormat:
    """The same KV stored otherwise: ``auto`` (as it is), a dtype, or a codec. Raises ConfigError for any other name."""
    if name == "auto":
        return fmt
    if name in DTYPE_BYTES:
        return replace(fmt, dtype=name, slot_bytes=(fmt.k_dim + fmt.v_dim) * DTYPE_BYTES[name])
    if name not in CODECS.names():
        raise ConfigError(choices("kv_cache_dtype", name, kv_dtypes()))
    codec: Any = CODECS.get(name)
    dims = [dim for dim in (fmt.k_dim, fmt.v_dim) if dim]
    slot_bytes = sum(codec.code_bytes(dim) + codec.scale_bytes(dim) for dim in dims)
    return replace(fmt, dtype=name, slot_bytes=slot_bytes)


def codec_of(fmt: KVFormat) -> SlotCodec | None:
    """The codec of a format, None for one that stores numbers."""
    if fmt.dtype in DTYPE_BYTES:
        return None
    codec: Any = CODECS.get(fmt.dtype)
    return codec


def forms(fmt: KVFormat) -> tuple[str, ...]:
    """What tells K and V of this format from those that earlier versions wrote, of the same name and size; empty where
    nothing changed. Part of the name that prefixes have, in memory and on disk.
    """
    if fmt.dtype in DTYPE_BYTES or fmt.dtype not in CODECS.names():  # numbers, or pages that are encoded whole
        return ()
    form: Any = getattr(CODECS.get(fmt.dtype), "form", None)
    found = () if form is None else (form(fmt.k_dim), form(fmt.v_dim))
    return found if any(found) else ()


def bfloat16_above(x: Tensor) -> Tensor:
    """The smallest bfloat16 numbers that are not below x, as float32; x is not negative.

    Scales are bfloat16: two bytes with a float32's range. Rounded up, so that no code leaves its range; the codes are
    computed with the rounded scale, which makes them at most 0.8 % coarser.
    """
    import torch

    return ((x.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)


def bfloat16_below(x: Tensor) -> Tensor:
    """The largest bfloat16 numbers that are not above x, as float32."""
    import torch

    bits = x.view(torch.int32)
    return (torch.where(x < 0, bits + 0xFFFF, bits) & ~0xFFFF).view(torch.float32)


def to_bytes(x: Tensor) -> Tensor:
    """float32 numbers that are bfloat16's, ``[..., n]`` -> uint8 ``[..., 2 * n]``."""
    import torch

    return x.to(torch.bfloat16).contiguous().view(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    """The way back, float32."""
    import torch

    return x.contiguous().view(torch.bfloat16).float()


def in_units(x: Tensor, unit: Tensor) -> Tensor:
    """``x / unit``, 0 where the unit is 0."""
    import torch

    return torch.where(unit > 0, x / unit, torch.zeros((), dtype=x.dtype, device=x.device))
