"""Matrices packed once into a file that they can be read from at every step, of checkpoints that lie otherwise.

GPTQ's and AWQ's words, a tensor that is transposed or stacked, plain numbers for which another format is asked: none of
them can be multiplied as they lie on disk. They go into one safetensors file, one parameter after another, in the codes
and under the names of `pagoda quantize` (`weights/schemes/pagoda.py`), and are streamed from there. The codes are those
that loading into memory makes, so the tokens are too. The file stays, for the next start of the same weights in the
same formats; whoever deletes it loses the time of writing it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pagoda.budget.ledger import Need
from pagoda.core.errors import ConfigError
from pagoda.core.units import format_bytes
from pagoda.weights.filling import new_codes
from pagoda.weights.header import DTYPE_SIZES, read_header
from pagoda.weights.reader import Checkpoint
from pagoda.weights.schemes.pagoda import OWN, VERSION
from pagoda.weights.source import TensorSource, open_source
from pagoda.weights.writer import TensorWriter

from .fingerprint import fingerprint, stamps
from .footprint import Footprint
from .model import Model
from .quantize_tensors import WritePlan, complete_parameters, passing_bytes, without_tied_head, write_parameter

MOST_OF_FREE = 0.9  # of a disk's free bytes that a file may take
MARGIN_BYTES = 4 << 20  # of a file's header


def spool_folder(asked: str | None) -> Path:
    """``asked``, or ``$XDG_CACHE_HOME/pagoda/spool``, or that in ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pagoda" / "spool"
    return Path(asked or base).expanduser()


@dataclass(frozen=True)
class Spool:
    """Where the file lies, and what writing it needs: leases and a bar."""

    folder: Path
    footprint: Footprint
    progress: Callable[[int, int], None] | None = None

    def source(
        self, model: Model, source: TensorSource, needs: Sequence[Need], config: Mapping[str, Any]
    ) -> TensorSource:
        """The weights of ``source`` as ``model`` holds them, from a file that is written first where there is none.

        ``needs``: what will be in memory while the model runs from it. Raises BudgetError before anything is read,
        ConfigError where the disk has no room or cannot be written to, ModelError for a tied head with values of its
        own, WeightsError for damage.
        """
        self.footprint.require(needs)
        plan = WritePlan(model, model.quantization)
        file = self.folder / f"{self._key(model, source, config, plan)}.safetensors"
        if not file.is_file():  # what is there is whole, also in a folder that cannot be written to
            with self._alone(file):
                if not file.is_file():
                    self._write(file, model, source, plan)
        checkpoint = Checkpoint(self.folder, read_header(file))
        return open_source(checkpoint, {"quant_method": OWN, "version": VERSION, "formats": plan.formats})

    def _key(self, model: Model, source: TensorSource, config: Mapping[str, Any], plan: WritePlan) -> str:
        how = ("spool", VERSION, model.dtype, sorted(plan.formats.items()), stamps(source.checkpoint))
        return fingerprint(source.checkpoint, config, *how)

    def _write(self, file: Path, model: Model, source: TensorSource, plan: WritePlan) -> None:
        empty = Model(
            model.spec, dtype=model.dtype, device=model.device, rope_length=model.rope_length,
            quantization=model.quantization,
        )  # fmt: skip
        empty.pack_by(new_codes)
        names = without_tied_head(empty, source)
        self._check_room(plan)
        num_bytes, what = passing_bytes(empty, source, names, plan), "one parameter after another"
        self.footprint.require([Need("staging", num_bytes, what)])
        with self.footprint.passing("staging", num_bytes, what), TensorWriter(file, plan.entries) as writer:
            for name, expert, weight in complete_parameters(empty, source, names, self.progress):
                write_parameter(writer, name, expert, weight)

    def _check_room(self, plan: WritePlan) -> None:
        free = shutil.disk_usage(self.folder).free
        needed = sum(prod(shape) * DTYPE_SIZES[dtype] for _, dtype, shape in plan.entries) + MARGIN_BYTES
        if needed > MOST_OF_FREE * free:
            raise ConfigError(
                f"{self.folder}: the packed weights take {format_bytes(needed)}, and of a disk with "
                f"{format_bytes(free)} free a tenth of that stays so; give another folder with --spool-dir"
            )

    @contextmanager
    def _alone(self, file: Path) -> Iterator[None]:
        """Of several processes that want the same file one writes it, the others wait. A lock ends with its process."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"spool_dir {str(self.folder)!r} cannot be used ({error.strerror}); give one that can be written to"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
