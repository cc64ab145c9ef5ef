"""The format of pages whose slots are stored by another codec than the model's own, and why there may be none."""

from __future__ import annotations

from dataclasses import replace

from ..core.types import KVFormat
from .codecs import CODECS
from .codecs.base import with_dtype
from .policies._windowed import WindowedCodec
from .policies.base import Stored


def stored_format(fmt: KVFormat, stored: Stored | WindowedCodec) -> KVFormat:
    """Of a model whose own format is ``fmt``."""
    return with_dtype(fmt, stored.codec) if isinstance(stored, Stored) else windowed_format(fmt, stored)


def why_not_stored(stored: Stored | WindowedCodec | None, fmt: KVFormat) -> str | None:
    """Why KV of a model whose own format is ``fmt`` cannot be stored so, and what can be done; or None."""
    if not isinstance(stored, WindowedCodec):
        return None
    if not fmt.v_dim:
        names = ", ".join(CODECS.names())
        return f"its latent KV has no keys and values to encode apart; choose a codec of single slots: {names}"
    return stored.why_not(fmt)


def windowed_format(fmt: KVFormat, codec: WindowedCodec) -> KVFormat:
    """The format of a windowed codec's pages, bytes of a slot rounded up."""
    page_bytes = codec.page_bytes(fmt.page_size, fmt.k_dim, fmt.v_dim)
    return replace(fmt, dtype=codec.codec, slot_bytes=-(-page_bytes // fmt.page_size))
