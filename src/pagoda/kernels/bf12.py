"""bfloat16 in twelve bits, every bit of it: exponents of a trained matrix lie close together, so four bits name them.

The entropy of a weight's exponent is some 2.6 of its 8 bits (DFloat11, arXiv:2504.11651, which codes them by Huffman's
trees for GPUs). Here a code has four bits always, so that a register of weights opens in five instructions. A panel's
*window* says which exponents they are: sixteen in a row or, where there are zeros, fifteen and code 0 for exponent 0.
Weights with another exponent, one or two in ten thousand, are *exceptions*: the panel lists their places.

    data    [panels][chunks][192]       a chunk: what four lines of bf16's panels hold, so eight inputs of sixteen rows

    byte    0   words: sign and mantissa (0x807f) of line 0; those of line 1, the word's bytes exchanged
           64   the same of lines 2 and 3
          128   words: four bits of code of line 0, 1, 2 and 3, from the lowest

    windows int32, a record of three for each panel:

            exponent of code n less n (+ 256: of code 0 as well, else that is exponent 0);
            where its exceptions begin, counted from this very record; how many they are

            exceptions follow: the word's place in the panel (line * 32 + word) * 256 + exponent, ascending

What is here is the plain twin of csrc/bf12.hpp and csrc/bf12_body.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packed_bytes import CHUNK_BYTES, WINDOW_BYTES

LINES, RECORD = 4, WINDOW_BYTES // 4  # of a chunk; numbers of a panel's record
WORDS = 32  # of a line
MANTISSA, NO_ZEROS = 0x807F, 256  # sign and mantissa; of a window: code 0 is no exponent 0
SAMPLED = 128  # lines, at least, that say which window a panel has


def encode(lines: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """lines bfloat16 ``[panels, lines, 32]`` (the order of bf16's panels) of so many ``inputs``, two a line -> data
    uint8 ``[panels, chunks, 192]`` and windows int32.
    """
    (panels, count), device = lines.shape[:2], lines.device
    words = lines.contiguous().view(torch.int16).int() & 0xFFFF
    chunks = -(-count // LINES)
    full = words.new_zeros(panels, chunks * LINES, WORDS)
    full[:, :count] = words
    exponents = full >> 7 & 0xFF
    window = torch.tensor([_window(panel) for panel in exponents[:, : count : max(1, count // SAMPLED)]])
    window = window.to(device, torch.int32)
    codes = exponents - window[:, None, None] % NO_ZEROS
    least = (window < NO_ZEROS).int()[:, None, None]
    none = (exponents == 0) & (least == 1)
    input = 2 * torch.arange(chunks * LINES, device=device)[:, None] + torch.arange(WORDS, device=device) % 2
    behind = input >= inputs  # nothing is there
    others = ~none & ~behind & ((codes < least) | (codes > 15))
    codes[others | none | behind] = 0
    rest, codes = (t.view(panels, chunks, LINES, WORDS) for t in (full & MANTISSA, codes))
    low, high = (rest[:, :, n] | _exchanged(rest[:, :, n + 1]) for n in (0, 2))
    nibbles = codes[:, :, 0] | codes[:, :, 1] << 4 | codes[:, :, 2] << 8 | codes[:, :, 3] << 12
    data = torch.stack([low, high, nibbles], 2).to(torch.int16).view(torch.uint8).view(panels, chunks, CHUNK_BYTES)
    panel, place = others.view(panels, -1).nonzero(as_tuple=True)
    exceptions = place.int() << 8 | exponents.reshape(panels, -1)[panel, place]
    return data, joined(window, torch.bincount(panel, minlength=panels), exceptions)


def joined(window: Tensor, counts: Tensor, exceptions: Tensor) -> Tensor:
    """Windows of panels ``[panels]`` that have so many exceptions each, one after the other."""
    panels = len(window)
    begin = counts.cumsum(0) - counts + RECORD * (panels - torch.arange(panels, device=window.device))
    return torch.cat([torch.stack([window, begin, counts], 1).int().flatten(), exceptions.int()])


def decode(data: Tensor, windows: Tensor, count: int) -> Tensor:
    """The way back: bfloat16 ``[panels, count, 32]``."""
    panels, chunks = data.shape[:2]
    words = data.contiguous().view(torch.int16).view(panels, chunks, 3, WORDS).int() & 0xFFFF
    rest = torch.stack([words[:, :, 0], _exchanged(words[:, :, 0]), words[:, :, 1], _exchanged(words[:, :, 1])], 2)
    codes = torch.stack([words[:, :, 2] >> 4 * n & 15 for n in range(LINES)], 2)
    records = windows[: RECORD * panels].view(panels, RECORD)
    window = records[:, 0, None, None, None]
    exponents = torch.where((codes > 0) | (window >= NO_ZEROS), codes + window % NO_ZEROS, 0).view(panels, -1)
    for panel, (_, begin, many) in enumerate(records.tolist()):
        found = windows[RECORD * panel + begin :][:many]
        exponents[panel, (found >> 8).long()] = found & 0xFF
    full = (rest.view(panels, -1) & MANTISSA) | exponents << 7
    return full.to(torch.int16).view(torch.bfloat16).view(panels, -1, WORDS)[:, :count]


def _exchanged(words: Tensor) -> Tensor:
    return (words << 8 | words >> 8) & 0xFFFF


def _window(exponents: Tensor) -> int:
    counts = torch.bincount(exponents.flatten(), minlength=256)
    (few, few_from), (all, all_from) = _best(counts, 15), _best(counts, 16)
    return all_from + NO_ZEROS if all >= few + int(counts[0]) else few_from - 1


def _best(counts: Tensor, width: int) -> tuple[int, int]:
    """The most that so many exponents in a row have, and the lowest of them, from 1 on."""
    inside = counts[1:].unfold(0, width, 1).sum(1)
    return int(inside.max()), 1 + int((inside == inside.max()).nonzero()[0])
