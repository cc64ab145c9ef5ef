"""What pages of one KV format become in one tier: their own bytes, or a codec's (`codecs._form`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ._record import CorruptRecord


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
