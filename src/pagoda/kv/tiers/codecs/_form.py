"""Pages of one KV format as a codec writes them: what a tier holds that was asked for fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass

from ....core.types import KVFormat
from .._record import CorruptRecord
from .base import PageCodec, UnreadablePages, format_page_codec


@dataclass(frozen=True)
class CodedForm:
    """A `Form`: what ``codec`` makes of a block, fewer bytes, with a loss."""

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
