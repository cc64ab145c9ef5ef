"""What pages of one KV format become in one tier: their own bytes, or a codec's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ...core.types import KVFormat
from ._record import CorruptRecord
from .codecs.base import PageCodec, UnreadablePages, format_page_codec


class Form(Protocol):
    """Used from several threads."""

    @property
    def text(self) -> str:
        """As an option says it."""
        ...

    @property
    def itemsize(self) -> int:
        """Bytes of a number in what ``pack`` gives."""
        ...

    def pack(self, raw: bytes) -> bytes:
        """A block's bytes -> those of the record."""
        ...

    def unpack(self, data: bytes) -> bytes:
        """The way back. Raises CorruptRecord where they are no block's."""
        ...


@dataclass(frozen=True)
class ExactForm:
    """The bytes themselves, ``block_bytes`` of them (None: any number)."""

    itemsize: int = 1
    block_bytes: int | None = None
    text = "exact"

    def pack(self, raw: bytes) -> bytes:
        return raw

    def unpack(self, data: bytes) -> bytes:
        if self.block_bytes not in (None, len(data)):
            raise CorruptRecord("it holds another number of bytes")
        return data


@dataclass(frozen=True)
class CodedForm:
    """What ``codec`` makes of them: fewer, with a loss."""

    codec: PageCodec
    fmt: KVFormat
    itemsize = 1

    @property
    def text(self) -> str:
        return format_page_codec(self.codec)

    def pack(self, raw: bytes) -> bytes:
        return self.codec.pack(raw, self.fmt)

    def unpack(self, data: bytes) -> bytes:
        try:
            return self.codec.unpack(data, self.fmt)
        except UnreadablePages as error:
            raise CorruptRecord(str(error)) from error
