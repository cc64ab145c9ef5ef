"""One page of tokens with its KV, as bytes. A record names its content, so a wrong one is never taken for it.

    magic 8 | flags 4 | itemsize 4 | tokens 4 | raw 8 | body 8 | parent 32 | key 32 | the tokens | the body | digest 32

``key`` is the hash of the parent's key and the tokens: it stands for the whole text from the start, in its namespace.
The checksum covers everything before it. The body is the pages' bytes by planes (all first bytes of the numbers, then
all second ones: exponents beside exponents) in zstandard, or as they are where that is no smaller.
"""

from __future__ import annotations

import struct

import blake3
import numpy as np
import zstandard

MAGIC = b"PAGODAK1"
_HEAD = struct.Struct("<8sIIIQQ32s32s")
COMPRESSED = 1
DIGEST_BYTES = 32
LEVEL = 1  # 3 gains 2 % of the bytes for a third of the speed (bfloat16 pages of a 1B shape)


class CorruptRecord(Exception):
    """The bytes are not a record, or not the one that was asked for."""


def root_key(namespace: bytes) -> bytes:
    """Where the texts of one namespace begin."""
    return blake3.blake3(MAGIC + namespace).digest()


def child_key(parent: bytes, tokens: bytes) -> bytes:
    """The key of a page of tokens after its ancestors'."""
    return blake3.blake3(parent + tokens).digest()


def pack(key: bytes, parent: bytes, tokens: bytes, raw: bytes, itemsize: int) -> list[bytes]:
    """The parts of a record, in order."""
    planes = np.frombuffer(raw, np.uint8).reshape(-1, itemsize).T.tobytes() if itemsize > 1 else raw
    body = zstandard.ZstdCompressor(level=LEVEL).compress(planes)
    flags = COMPRESSED
    if len(body) >= len(raw):
        body, flags = raw, 0
    head = _HEAD.pack(MAGIC, flags, itemsize, len(tokens), len(raw), len(body), parent, key)
    digest = blake3.blake3(head)
    digest.update(tokens)
    digest.update(body)
    return [head, tokens, body, digest.digest()]


def unpack(data: bytes, key: bytes, parent: bytes, tokens: bytes) -> bytes:
    """The bytes that went in.

    Raises CorruptRecord unless this is exactly that record, whole and unchanged.
    """
    if len(data) < _HEAD.size + DIGEST_BYTES:
        raise CorruptRecord("it is too short")
    magic, flags, itemsize, num_tokens, raw_size, body_size, of, named = _HEAD.unpack_from(data)
    start = _HEAD.size + num_tokens
    if magic != MAGIC or len(data) != start + body_size + DIGEST_BYTES:
        raise CorruptRecord("it is of another version, or cut short")
    if blake3.blake3(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise CorruptRecord("its checksum is wrong")
    if (named, of, data[_HEAD.size : start]) != (key, parent, tokens):
        raise CorruptRecord("it holds another text")
    body = data[start:-DIGEST_BYTES]
    if not flags & COMPRESSED:
        return body
    try:
        planes = zstandard.ZstdDecompressor().decompress(body, max_output_size=raw_size)
    except zstandard.ZstdError as error:
        raise CorruptRecord(str(error)) from error
    if len(planes) != raw_size:
        raise CorruptRecord("it unpacks to another length")
    return np.frombuffer(planes, np.uint8).reshape(itemsize, -1).T.tobytes() if itemsize > 1 else planes


def check(data: bytes) -> str | None:
    """What is wrong with a record, None if nothing is: for ``pagoda cache verify``."""
    if len(data) < _HEAD.size + DIGEST_BYTES or data[:8] != MAGIC:
        return "not a record of this version"
    _, _, _, num_tokens, _, _, parent, key = _HEAD.unpack_from(data)
    tokens = data[_HEAD.size : _HEAD.size + num_tokens]
    if child_key(parent, tokens) != key:
        return "its key is not that of its text"
    try:
        unpack(data, key, parent, tokens)
    except CorruptRecord as error:
        return str(error)
    return None
