"""A GGUF model in several files, as ``gguf-split`` and the hub's large models have it: NAME-00001-of-00003.gguf, …

The first part has the metadata; every part has a header of its own tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..core.errors import WeightsError
from .gguf_header import GGUFHeader, read_gguf

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def is_later_part(file: Path) -> bool:
    """Whether the name is that of a part behind the first."""
    found = _PART.fullmatch(file.stem)
    return found is not None and int(found[2]) > 1


def read_parts(file: Path) -> GGUFHeader:
    """The header of a whole model by its only file, or by its first.

    Raises WeightsError naming the file that is missing, damaged or out of place.
    """
    first = read_gguf(file)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return first
    named = _PART.fullmatch(file.stem)
    if not isinstance(count, int) or named is None or int(named[3]) != count:
        raise WeightsError(f"{file}: split.count is {count!r}, and the name should end in -00001-of-{count!s:0>5}.gguf")
    files = [file.with_name(f"{named[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if first.metadata.get("split.no") != 0:
        raise WeightsError(f"{file}: one of {count} parts; give the first, {files[0].name}")
    tensors = dict(first.tensors)
    for number, part in enumerate(files[1:], 1):
        if not part.is_file():
            raise WeightsError(f"{part}: part {number + 1} of {count} is missing; download it")
        found = read_gguf(part)
        place = found.metadata.get("split.no"), found.metadata.get("split.count")
        if place != (number, count):
            raise WeightsError(f"{part}: split.no and split.count are {place}; expected {(number, count)}")
        if twice := tensors.keys() & found.tensors.keys():
            raise WeightsError(f"{part}: tensor {min(twice)!r} stands in an earlier part too")
        tensors |= found.tensors
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise WeightsError(f"{file}: split.tensors.count is {total}, its {count} parts have {len(tensors)} tensors")
    return replace(first, tensors=tensors)
