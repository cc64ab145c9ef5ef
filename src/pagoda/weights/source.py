"""What a model is filled from: tensors under the names that it knows, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, PagodaError, WeightsError, choices
from .formats.base import BLOCK_ELEMS, SCRATCH_BYTES, WeightFormat
from .reader import Checkpoint, ring_bytes, staging_bytes
from .schemes import SCHEMES
from .schemes.base import Logical

if TYPE_CHECKING:
    from torch import Tensor

    from .packed import CodedMatrix

ALIASES = {"compressed-tensors": "compressed_tensors", "sparseml": "compressed_tensors"}


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

    def passing_bytes(self, names: Iterable[str] | None = None) -> int:
        """What stands beside the model while these tensors (all) load: one as it is stored, and what is made of it."""
        entries = self.checkpoint.entries
        wanted = self.logical.values() if names is None else (self.logical[name] for name in names)
        found = [t for t in wanted if t.parts[0] in entries]
        read = ring_bytes([staging_bytes(entries[part] for part in t.parts) for t in found])
        return read + max((_made_bytes(t) for t in found), default=0)

    def stream(self, order: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor | CodedMatrix, int]]:
        """(name, tensor, bytes read for it), each valid until the next. Raises WeightsError naming file and tensor."""
        names = list(self.logical) if order is None else list(order)
        groups = [self.logical[name].parts for name in names]
        for name, tensors in zip(names, self.checkpoint.stream_groups(groups), strict=True):
            made = self.logical[name]
            try:
                tensor = made.build(tensors)
            except PagodaError:
                raise
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                where = self.checkpoint.entries[made.parts[0]].file
                raise WeightsError(f"{where}: tensor {made.parts[0]!r} cannot be unpacked ({error})") from error
            yield name, tensor, sum(t.nbytes for t in tensors.values())

    def stored_bytes(self, name: str) -> int:
        """Bytes that a stream reads for one tensor."""
        return self._stored_bytes(self.logical[name])

    def _stored_bytes(self, tensor: Logical) -> int:
        return sum(self.checkpoint.entries[part].num_bytes for part in tensor.parts)


def _made_bytes(tensor: Logical) -> int:
    if tensor.made_bytes is not None:
        return tensor.made_bytes
    if len(tensor.parts) == 1:
        return 0
    rows, cols = tensor.shape
    made = rows * cols * 4 if tensor.format is None else tensor.format.stored_bytes(rows, cols)
    return made + min(rows * cols, BLOCK_ELEMS) * SCRATCH_BYTES


def open_source(checkpoint: Checkpoint, quantization_config: Any) -> TensorSource:
    """The checkpoint's tensors, by its ``quantization_config`` where config.json has one.

    Raises WeightsError for a method that is not read, or a checkpoint that does not fit its config.
    """
    if not quantization_config:
        plain = {n: Logical((n,), e.shape, _itself(n), rows=n) for n, e in checkpoint.entries.items()}
        return TensorSource(checkpoint, plain)
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


def _itself(name: str) -> Any:
    return lambda tensors: tensors[name]
