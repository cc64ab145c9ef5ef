"""Records of pages that follow each other, in one file: written at once, read at once, found by each one's name.

    magic 8 | records 4 | (key 32, bytes 8) each | digest 32 | the records (`_record`), one after the other

The digest covers what is before it; the records have their own. Moving KV in runs of blocks instead of block by block
is FastSwitch's (arXiv:2411.18424, section 3.1): what costs is the number of moves, here of files and their fsync.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import blake3

from ._base import Name
from ._files import HEAD_BYTES
from ._record import DIGEST_BYTES, CorruptRecord

MAGIC = b"PAGODAR2"
MOST_RECORDS = 128
_HEAD, _PLACE = struct.Struct("<8sI"), struct.Struct("<32sQ")
assert _HEAD.size + MOST_RECORDS * _PLACE.size + DIGEST_BYTES <= HEAD_BYTES, "one read tells where everything is"


class Place(NamedTuple):
    """Where in the file a record lies, in bytes."""

    key: bytes
    first: int
    size: int


def pack_run(records: Sequence[tuple[bytes, list[bytes]]]) -> list[bytes]:
    """Keys and parts of at most ``MOST_RECORDS`` records -> the parts of the file, in order."""
    head = _HEAD.pack(MAGIC, len(records))
    head += b"".join(_PLACE.pack(key, sum(map(len, parts))) for key, parts in records)
    return [head, blake3.blake3(head).digest(), *(part for _, parts in records for part in parts)]


def read_places(data: bytes) -> list[Place]:
    """What lies where in a run, from its beginning. Raises CorruptRecord."""
    magic, count = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (b"", 0)
    if magic != MAGIC or not 0 < count <= MOST_RECORDS:
        raise CorruptRecord("it is no run of this version")
    end = _HEAD.size + count * _PLACE.size
    first = end + DIGEST_BYTES
    if len(data) < first or blake3.blake3(data[:end]).digest() != data[end:first]:
        raise CorruptRecord("the checksum of its beginning is wrong")
    places = []
    for key, size in _PLACE.iter_unpack(data[_HEAD.size : end]):
        places.append(Place(key, first, size))
        first += size
    return places


def asked(places: list[Place], names: Sequence[Name]) -> list[Place]:
    """Places of the first names, as many as lie one after the other. Raises CorruptRecord where the first does not."""
    at = next((at for at, place in enumerate(places) if place.key == names[0].key), None)
    if at is None:
        raise CorruptRecord("it holds another text")
    count = 1
    for place, name in zip(places[at + 1 :], names[1:], strict=False):
        if place.key != name.key:
            break
        count += 1
    return places[at : at + count]
