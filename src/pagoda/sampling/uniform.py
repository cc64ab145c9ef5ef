"""The only randomness in sampling: a number that depends on (request seed, sequence index, position) alone.

A counter instead of a generator's state: no draw of one request moves another's, a preempted sequence that is computed
again draws the same numbers, and nothing has to be saved. No torch.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

_MASK64 = 2**64 - 1
_STEP = 2.0**-53


def uniform(seed: int, index: int, position: int) -> float:
    """A number in (0, 1), never 0 or 1, with 53 random bits: BLAKE2b of the three counters.

    ``seed`` any int (taken modulo 2**64), ``index`` the sequence's number within its request, ``position`` how many
    tokens the sequence has generated before this one. 1 microsecond.
    """
    counter = struct.pack("<QQQ", seed & _MASK64, index, position)
    bits = int.from_bytes(blake2b(counter, digest_size=8, person=b"pagoda-uniform").digest(), "little")
    return ((bits >> 11) + 0.5) * _STEP if bits >> 11 < 2**53 - 1 else 1.0 - _STEP
