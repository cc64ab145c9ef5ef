"""bfloat16 in twelve bits, every bit of it: exponents of a trained matrix lie close together, so four bits name them.

The entropy of a weight's exponent is some 2.6 of its 8 bits (DFloat11, arXiv:2504.11651, which codes them by Huffman's
trees for GPUs). Here a code has four bits always, so that a register of weights opens in five instructions: code 0 is
exponent 0 (zeros and denormal numbers), codes 1 to 15 are the exponents behind the *window* of the panel. Weights whose
exponent is another one, some two in ten thousand, are *exceptions*: the panel lists their places.

    data    [panels][chunks][192]       a chunk: what four lines of bf16's panels hold, so eight inputs of sixteen rows

    byte    0   words: sign and mantissa (0x807f) of line 0; those of line 1, the word's bytes exchanged
           64   the same of lines 2 and 3
          128   words: four bits of code of line 0, 1, 2 and 3, from the lowest

    windows int32                       of each panel: exponent of code 0 + n less n; where its exceptions begin, counted
                                        from this very number's record; how many they are. Exceptions follow: place in the
                                        panel's words (line * 32 + word) * 256 + exponent, ascending.

What is here is the plain twin of csrc/lay_out.cpp and csrc/short_floats.hpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

LINES, CHUNK, RECORD = 4, 192, 3
WORDS = 32  # of a line
MANTISSA, LARGEST = 0x807F, 240  # sign and mantissa; a window's
SAMPLED = 8  # one line in so many says which window a panel has


def encode(lines: Tensor) -> tuple[Tensor, Tensor]:
    """lines bfloat16 ``[panels, lines, 32]`` (the order of bf16's panels) -> data uint8 ``[panels, chunks, 192]`` and
    windows int32.
    """
    panels, count = lines.shape[:2]
    words = lines.contiguous().view(torch.int16).int() & 0xFFFF
    chunks = -(-count // LINES)
    full = words.new_zeros(panels, chunks * LINES, WORDS)
    full[:, :count] = words
    exponents = full >> 7 & 0xFF
    base = torch.tensor([_window(panel) for panel in exponents[:, :count:SAMPLED]], dtype=torch.int32)
    codes = exponents - base[:, None, None]
    others = (exponents > 0) & ((codes < 1) | (codes > 15))
    codes[others | (exponents == 0)] = 0
    rest, codes = (t.view(panels, chunks, LINES, WORDS) for t in (full & MANTISSA, codes))
    low, high = (rest[:, :, n] | _exchanged(rest[:, :, n + 1]) for n in (0, 2))
    nibbles = codes[:, :, 0] | codes[:, :, 1] << 4 | codes[:, :, 2] << 8 | codes[:, :, 3] << 12
    data = torch.stack([low, high, nibbles], 2).to(torch.int16).view(torch.uint8).view(panels, chunks, CHUNK)
    panel, place = others.view(panels, -1).nonzero(as_tuple=True)
    exceptions = place.int() << 8 | exponents.reshape(panels, -1)[panel, place]
    return data, joined(base, torch.bincount(panel, minlength=panels), exceptions)


def joined(base: Tensor, counts: Tensor, exceptions: Tensor) -> Tensor:
    """Windows of panels ``[panels]`` that have so many exceptions each, one after the other."""
    panels = len(base)
    begin = counts.cumsum(0) - counts + RECORD * (panels - torch.arange(panels))
    return torch.cat([torch.stack([base, begin, counts], 1).int().flatten(), exceptions.int()])


def decode(data: Tensor, windows: Tensor, count: int) -> Tensor:
    """The way back: bfloat16 ``[panels, count, 32]``."""
    panels, chunks = data.shape[:2]
    words = data.contiguous().view(torch.int16).view(panels, chunks, 3, WORDS).int() & 0xFFFF
    rest = torch.stack([words[:, :, 0], _exchanged(words[:, :, 0]), words[:, :, 1], _exchanged(words[:, :, 1])], 2)
    codes = torch.stack([words[:, :, 2] >> 4 * n & 15 for n in range(LINES)], 2)
    records = windows[: RECORD * panels].view(panels, RECORD)
    exponents = torch.where(codes > 0, codes + records[:, 0, None, None, None], 0).view(panels, -1)
    for panel, (_, begin, many) in enumerate(records.tolist()):
        found = windows[RECORD * panel + begin :][:many]
        exponents[panel, (found >> 8).long()] = found & 0xFF
    full = (rest.view(panels, -1) & MANTISSA) | exponents << 7
    return full.to(torch.int16).view(torch.bfloat16).view(panels, -1, WORDS)[:, :count]


def _exchanged(words: Tensor) -> Tensor:
    return (words << 8 | words >> 8) & 0xFFFF


def _window(exponents: Tensor) -> int:
    """Where fifteen exponents begin that most of these are among: the lowest such number."""
    counts = torch.bincount(exponents.flatten(), minlength=256)
    counts[0] = 0
    upto = counts.cumsum(0)
    inside = upto[15 : LARGEST + 16] - upto[: LARGEST + 1]
    return int((inside == inside.max()).nonzero()[0])
