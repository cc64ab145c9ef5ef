"""The model of a plan: what its config says, and how the engine would run it. Nothing of it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..budget.probe import MachineProbe
from ..core.errors import ConfigError, RequestError, UnsupportedModelError
from ..kernels.preferred import isa_of
from ..kv.grammar import parse_policy
from ..kv.policies._layers import Distances
from ..kv.policies._stack import PolicyStack
from ..models.config_json import quantization_config, stated_dtype
from ..models.families import names, read_spec
from ..models.footprint import GGUF_HEADER_BYTES, tokenizer_bytes
from ..models.gguf import config_of, source_of
from ..models.packed_rows import find_panels, packed_folder
from ..models.shape import TINY_PARAMS, ModelShape
from ..models.sources import source_table
from ..models.spec import DecoderSpec
from ..models.stored import stored_formats, stored_rows
from ..weights.formats.base import WeightFormat
from ..weights.gguf_parts import read_parts
from ..weights.header import DTYPE_SIZES, are_halves, read_header
from ..weights.panel_rows import PanelRows
from ..weights.quantization import EXPERT, Quantization, in_panels, parse_format, parse_quantization
from ..weights.reader import Checkpoint
from ..weights.rows import OnDisk
from ..weights.schemes.pagoda import OWN, VERSION

GGUF_DTYPES = {"U8": "bfloat16", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors names of what a GGUF file has -> what that runs in; U8: blocks, which are opened."""
TOKENIZER_BYTES_PER_WORD = 46
"""Of tokenizer.json, where there is none to look at (Qwen2.5: 7.0 MB, 151,643 words; Llama 3: 9.1 MB, 128,256)."""


def _no_file(_: Quantization, __: str) -> Mapping[str, PanelRows]:
    return {}


@dataclass(frozen=True, slots=True)
class Subject:
    """``distances``: how its layers measure distance, by which lossy KV policies are fitted to it. ``streams``: whether
    its matrices can be read from disk, where they lie in ``stored_dtype`` (empty: in ``dtype``), as they are
    multiplied. ``stored``: the formats that the checkpoint is packed in, which it keeps. ``on_disk``: matrices of a
    GGUF file by what streaming them takes; None: of a folder, as such checkpoints usually are. ``rearranged``: they lie
    there otherwise than they are multiplied. ``halves``: all of its matrices are stored in float16.
    ``isa``: what the kernels run with here, where that decides how weights lie (`kernels.preferred`). ``panels_in``:
    the matrices that a file of `pagoda pack` beside it holds in these formats, in that dtype (none: there is no such
    file).
    """

    name: str
    family: str
    shape: ModelShape
    dtype: str
    panels: bool
    tokenizer_bytes: int
    distances: Distances
    streams: bool = False
    stored: Quantization | None = None
    stored_dtype: str = ""
    on_disk: Mapping[str, OnDisk] | None = None
    rearranged: bool = False
    halves: bool = False
    isa: str = ""
    panels_in: Callable[[Quantization, str], Mapping[str, PanelRows]] = _no_file

    @classmethod
    def of(
        cls, name: str, config: Mapping[str, Any], *, folder: Path | None = None, probe: MachineProbe | None = None
    ) -> Subject:
        """From config.json, and from what a GGUF file says of its tensors (then ``folder`` is that file). Raises
        ModelError, UnsupportedModelError or ConfigError, one line each.
        """
        family = config.get("model_type")
        if family not in names():
            raise UnsupportedModelError(
                f"{name}: {family or 'no model_type'} runs through transformers, and its bytes are known once it is "
                f"loaded; pagoda plan knows: {', '.join(names())}"
            )
        packed = _packed(config)
        if packed.get("quant_method", OWN) != OWN:
            raise UnsupportedModelError(
                f"{name}: its weights are packed already ({packed['quant_method']}); pagoda plan knows plain "
                "checkpoints and those that pagoda quantize writes; give the unpacked model, or run this one: its own "
                "needs are added up before it loads"
            )
        spec = read_spec(config)
        shape = ModelShape.from_spec(spec)
        flags = (probe or MachineProbe()).cpu_flags()
        panels = bool(flags & {"avx2", "avx512f"})
        plain = cls(
            name, str(family), shape, "", panels, tokenizer_bytes(_tokenizer_file_bytes(folder, shape)),
            distances=Distances(spec.windows, spec.alibi), streams=panels, isa=isa_of(flags),
        )  # fmt: skip
        if folder is not None and folder.is_file():
            return _of_gguf(plain, spec, folder)
        stored = _stored(name, packed, shape) if packed else None
        numbers = shape.num_params if stored is None or folder is None else _stored_numbers(folder)
        return replace(
            plain, dtype=run_dtype(config, numbers), stored_dtype=_dtype_on_disk(config), stored=stored,
            streams=panels and not _is_stacked(stored), halves=_are_halves(config, folder),
            rearranged=stored is None and spec.names.rearranged, panels_in=_panels_in(folder, config, spec, shape),
        )  # fmt: skip

    def policy(self, text: str, longest: int) -> PolicyStack:
        """The KV policy as it runs on this model, in contexts of so many tokens at most. Raises RequestError where it
        does not.
        """
        return self.distances.fit(parse_policy(text), longest)

    def runs(self, policies: Iterable[str], longest: int) -> list[str]:
        """Those that run on this model."""
        return [text for text in policies if self._runs(text, longest)]

    def _runs(self, text: str, longest: int) -> bool:
        try:
            self.policy(text, longest)
        except RequestError:
            return False
        return True

    def packed(self, quantization: Quantization) -> Mapping[str, OnDisk]:
        """Matrices that streaming reads from the file of `pagoda pack`, by what that takes; none without it."""
        if not self.streams or any(matrix.role == "experts" for matrix in self.shape.matrices):
            return {}
        return {name: rows.on_disk() for name, rows in self.panels_in(quantization, self.dtype).items()}

    def quantization(self, text: str) -> Quantization:
        """What ``quantization=text`` comes to on this machine's processor."""
        if text == "auto" and self.stored is not None:
            return self.stored
        if text == "auto":
            fits = self.panels and self.dtype != "float16"
            return in_panels(self.dtype, halves=self.halves, isa=self.isa) if fits else Quantization()
        return parse_quantization(text)


def _of_gguf(plain: Subject, spec: DecoderSpec, file: Path) -> Subject:
    """With the dtype, the formats and the bytes that the file's tensors have."""
    header = read_parts(file)
    config = config_of(header)
    source, table = source_of(header, config), source_table(spec)
    entries = source.checkpoint.entries
    by_dtype = Counter[str]()
    for entry in entries.values():
        by_dtype[GGUF_DTYPES[entry.dtype]] += entry.num_bytes
    stated = by_dtype.most_common(1)[0][0]
    numbers = sum(entry.num_bytes // DTYPE_SIZES[entry.dtype] for entry in entries.values())
    stored = stored_formats(table.find, table.regions(), source.formats) if source.formats else None
    found = replace(
        plain, dtype=run_dtype({"torch_dtype": stated}, numbers), stored_dtype=stated, stored=stored,
        halves=are_halves(entries.values()),
        panels_in=lambda quantization, dtype: find_panels(
            file, source.checkpoint, config, table.find, source.names, plain.shape, quantization, dtype
        ),
    )  # fmt: skip
    rows, _ = stored_rows(table.find, plain.shape, found.quantization("auto"), source.logical, entries)
    on_disk = {name: one.on_disk() for name, one in rows.items()}
    room = min(file.stat().st_size, GGUF_HEADER_BYTES)
    return replace(found, on_disk=on_disk, tokenizer_bytes=tokenizer_bytes(room))


def _panels_in(
    folder: Path | None, config: Mapping[str, Any], spec: DecoderSpec, shape: ModelShape
) -> Callable[[Quantization, str], Mapping[str, PanelRows]]:
    if folder is None or not packed_folder(folder).is_dir():
        return _no_file
    checkpoint, find = Checkpoint.open(folder), source_table(spec).find
    return lambda quantization, dtype: find_panels(
        folder, checkpoint, config, find, checkpoint.entries, shape, quantization, dtype
    )


def _tokenizer_file_bytes(folder: Path | None, shape: ModelShape) -> int:
    file = None if folder is None else folder / "tokenizer.json"
    if file is not None and file.is_file():
        return file.stat().st_size
    return TOKENIZER_BYTES_PER_WORD * shape.vocab_size


def _is_stacked(stored: Quantization | None) -> bool:
    """Whether blocks are left out where memory is short, and none is read at every step."""
    return stored is not None and any(f is not None and f.name == "bitstack" for f in stored.overrides.values())


def run_dtype(config: Mapping[str, Any], num_params: int) -> str:
    """The dtype that ``auto`` takes on a CPU for a checkpoint stored as its config says (``models.dtype_choice``)."""
    name = _dtype_on_disk(config)
    return "float32" if num_params <= TINY_PARAMS or name == "float16" else name


def _dtype_on_disk(config: Mapping[str, Any]) -> str:
    """As its config says; bfloat16 where that is silent, as nearly every published checkpoint is stored."""
    return stated_dtype(config) or "bfloat16"


def _are_halves(config: Mapping[str, Any], folder: Path | None) -> bool:
    """By the checkpoint's files, or, where there are none, by what the config says."""
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if not files:
        return _dtype_on_disk(config) == "float16"
    return are_halves(entry for file in files for entry in read_header(file).values())


def _packed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of packed weights; nothing where they are plain."""
    found = quantization_config(config)
    return {"quant_method": "unnamed", **found} if isinstance(found, Mapping) and found else {}


def _stored(name: str, packed: Mapping[str, Any], shape: ModelShape) -> Quantization:
    """The format of every matrix as our own checkpoints name it (`weights.schemes.pagoda`), of experts each its own."""
    named = packed.get("formats")
    if packed.get("version") != VERSION or not isinstance(named, Mapping):
        raise ConfigError(f"{name}: quantization_config needs version {VERSION} and formats; quantize the model again")
    formats = {param: parse_format(text) for param, text in named.items()}
    found: dict[str, WeightFormat | None] = {}
    for matrix in shape.matrices:
        experts = [f"{matrix.name}{EXPERT}{number}" for number in range(matrix.count)]
        if any(expert in formats for expert in experts):
            found |= {expert: formats.get(expert, formats.get(matrix.name)) for expert in experts}
        elif matrix.name in formats:
            found[matrix.name] = formats[matrix.name]
    return Quantization(overrides=found)


def _stored_numbers(folder: Path) -> int:
    """Numbers in a checkpoint's files, codes of several in a byte as one: what ``auto`` takes a model's size from."""
    files = sorted(folder.glob("*.safetensors"))
    entries = [entry for file in files for entry in read_header(file).values()]
    return sum(entry.num_bytes // DTYPE_SIZES[entry.dtype] for entry in entries)
