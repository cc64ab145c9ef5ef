"""What a model is filled from: tensors under the names that it knows, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, PagodaError, WeightsError, choices
from ..kernels.packed_bytes import PANEL
from .formats.base import BLOCK_ELEMS, SCRATCH_BYTES, WeightFormat
from .header import TensorEntry
from .reader import Checkpoint, ring_bytes, staging_bytes
from .rows import UNIT_BYTES, rows_of_parts, rows_of_unit
from .schemes import SCHEMES
from .schemes.base import Logical, plain

if TYPE_CHECKING:
    from torch import Tensor

    from .packed import CodedMatrix

ALIASES = {"compressed-tensors": "compressed_tensors", "sparseml": "compressed_tensors"}


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows of a logical tensor from ``start`` (all of them where it was not cut), valid until the next comes.

    ``num_bytes`` were read for them.
    """

    name: str
    start: int
    tensor: Tensor | CodedMatrix
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows ``start:stop`` of a logical tensor, and where its stored parts lie."""

    name: str
    start: int
    stop: int
    entries: tuple[TensorEntry, ...]


class TensorSource:
    """The logical tensors of a checkpoint. ``formats`` has the weight format of those that come packed."""

    def __init__(self, checkpoint: Checkpoint, logical: Mapping[str, Logical]) -> None:
        self.checkpoint, self.logical = checkpoint, logical
        self.formats: dict[str, WeightFormat] = {n: t.format for n, t in logical.items() if t.format is not None}

    @property
    def names(self) -> list[str]:
        return list(self.logical)

    @property
    def num_bytes(self) -> int:
        """Bytes that a stream reads."""
        return sum(self._stored_bytes(t) for t in self.logical.values())

    def without(self, parts: Collection[str]) -> TensorSource:
        """The same, but these stored parts are not read: of formats whose matrices stand without them."""
        gone = set(parts)
        kept = {name: tuple(part for part in found.parts if part not in gone) for name, found in self.logical.items()}
        return TensorSource(self.checkpoint, {n: replace(t, parts=kept[n]) for n, t in self.logical.items()})

    def passing_bytes(self, names: Iterable[str] | None = None, cut: Collection[str] = ()) -> int:
        """What stands beside the model while these tensors (all) load: the ring, and what is made of a piece of it."""
        pieces = self._pieces(names, cut)
        read = ring_bytes([staging_bytes(piece.entries) for piece in pieces])
        return read + max((_made_bytes(self.logical[piece.name], piece) for piece in pieces), default=0)

    def stream(self, names: Iterable[str] | None = None, cut: Collection[str] = ()) -> Iterator[Arrival]:
        """These tensors (all), one after the other; large ones of ``cut`` in pieces of some rows, in order.

        Raises WeightsError naming file and tensor.
        """
        pieces = self._pieces(names, cut)
        arrivals = self.checkpoint.stream_entries([piece.entries for piece in pieces])
        for piece, tensors in zip(pieces, arrivals, strict=True):
            made = self.logical[piece.name]
            try:
                tensor = made.build(tensors)
            except PagodaError:
                raise
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                where = self.checkpoint.entries[made.parts[0]].file
                raise WeightsError(f"{where}: tensor {made.parts[0]!r} cannot be unpacked ({error})") from error
            yield Arrival(piece.name, piece.start, tensor, sum(t.nbytes for t in tensors.values()))

    def _pieces(self, names: Iterable[str] | None, cut: Collection[str]) -> list[_Piece]:
        return [p for name in (self.logical if names is None else names) for p in self._pieces_of(name, name in cut)]

    def _pieces_of(self, name: str, may_cut: bool) -> Iterator[_Piece]:
        logical, found = self.logical[name], self.checkpoint.entries
        entries = tuple(found[part] for part in logical.parts)
        rows, num_bytes = logical.shape[0] if logical.shape else 0, sum(entry.num_bytes for entry in entries)
        step = rows_of_unit(-(-num_bytes // max(1, rows)), UNIT_BYTES, lcm(PANEL, logical.row_step))
        if not may_cut or not logical.by_rows or num_bytes <= UNIT_BYTES or step >= rows:
            yield _Piece(name, 0, rows, entries)
            return
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield _Piece(name, start, stop, rows_of_parts(entries, rows, start, stop))

    def stored_bytes(self, name: str) -> int:
        """Bytes that a stream reads for one tensor."""
        return self._stored_bytes(self.logical[name])

    def _stored_bytes(self, tensor: Logical) -> int:
        return sum(self.checkpoint.entries[part].num_bytes for part in tensor.parts)


def _made_bytes(tensor: Logical, piece: _Piece) -> int:
    if tensor.made_bytes is None and len(tensor.parts) > 1:
        rows, cols = tensor.shape
        made = rows * cols * 4 if tensor.format is None else tensor.format.stored_bytes(rows, cols)
        made += min(rows * cols, BLOCK_ELEMS) * SCRATCH_BYTES
    else:
        made = tensor.made_bytes or 0
    num_rows = piece.stop - piece.start
    if not made or num_rows == tensor.shape[0]:
        return made
    return min(made, made * num_rows // tensor.shape[0] + BLOCK_ELEMS * SCRATCH_BYTES)


def open_source(checkpoint: Checkpoint, quantization_config: Any) -> TensorSource:
    """The checkpoint's tensors, by its ``quantization_config`` where config.json has one.

    Raises WeightsError for a method that is not read, or a checkpoint that does not fit its config.
    """
    if not quantization_config:
        return TensorSource(checkpoint, {name: plain(name, entry) for name, entry in checkpoint.entries.items()})
    where = f"{checkpoint.folder}/config.json: quantization_config"
    method = quantization_config.get("quant_method") if isinstance(quantization_config, Mapping) else None
    name = ALIASES.get(str(method), str(method))
    if name not in SCHEMES.names():
        raise WeightsError(f"{where}: {choices('quant_method', method, SCHEMES.names())}; or use the original weights")
    scheme: Any = SCHEMES.get(name)
    try:
        return TensorSource(checkpoint, scheme(quantization_config, checkpoint.entries, checkpoint.read).logical())
    except ConfigError as error:
        raise WeightsError(f"{checkpoint.folder}/config.json: {error}") from error
