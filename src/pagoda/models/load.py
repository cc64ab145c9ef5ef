"""From a name or a folder to a model that runs: config, tokenizer, weights, generation defaults, chat template."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pagoda.budget.ledger import Ledger
from pagoda.core.errors import ConfigError, UnsupportedModelError, choices
from pagoda.core.units import format_bytes
from pagoda.kernels.dispatch import load_providers
from pagoda.weights.expert_cache import ExpertCache
from pagoda.weights.header import are_halves
from pagoda.weights.neurons import NeuronCache
from pagoda.weights.quantization import Quantization, in_panels, parse_quantization
from pagoda.weights.reader import Checkpoint
from pagoda.weights.source import TensorSource, open_source

from . import families
from .chat import ChatTemplate, read_templates
from .config_json import quantization_config, read_config, text_config
from .dtype_choice import choose_dtype, offering_half
from .fingerprint import fingerprint, stamps
from .footprint import GGUF_HEADER_BYTES, Footprint, tokenizer_bytes
from .generation import end_ids, read_generation
from .model import Model
from .packed_file import PackedFile
from .packed_rows import packed_folder
from .placement import Filling, Progress, RoomFor, Streaming, choose_stream, packing_of
from .resizing import BlockStacks
from .resolve import resolve
from .shape import ModelShape
from .stream_plan import StreamPlan
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .fallback import FallbackModel

TRANSFORMERS_BYTES = 160 << 20  # measured beside torch: 133 MB with one architecture's file; adapted to what it is


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with everything its folder says. ``close`` gives the weights and their leases back; what
    the folder says stays.
    """

    model: Model | FallbackModel
    tokenizer: Tokenizer
    shape: ModelShape
    generation: dict[str, Any]
    """Sampling defaults of generation_config.json (see ``generation.read_generation``)."""
    eos_ids: tuple[int, ...]
    chat_templates: dict[str, str]
    fingerprint: str
    path: Path
    config: dict[str, Any]
    dtype: str
    dtype_reason: str
    quantization: Quantization
    footprint: Footprint
    stream: StreamPlan | None = None
    """What is read from disk at every step; None where all weights are in memory."""
    spool: Path | None = None
    """The file that it is read from, where it is not the model's own."""
    spool_bytes: int = 0
    experts: ExpertCache | None = None
    neurons: NeuronCache | None = None
    stacks: BlockStacks | None = None
    """Blocks that come and go while the model runs; None for a model of transformers' modules."""
    packed: PackedFile | None = None
    """Where all weights lie packed, or would lie; None where they cannot."""
    packed_why_not: str = ""
    """Why a file that is there is left alone."""
    streams_packed: bool = False
    """Whether what is read at every step comes from that file."""

    @property
    def placement(self) -> str:
        """Where the weights are, in words."""
        if self.stream is None:
            if self.packed is not None and self.packed.is_mapped:
                return f"resident, mapped from {self.packed.file}"
            kept = "resident" if self.stacks is None else self.stacks.placement
            wide = getattr(self.model, "num_widened", 0)
            if wide:
                kept += f", {wide} matrices in 16 bits (their exponents lie too far apart for {self.quantization})"
            return kept + (f"; {self.packed_why_not}" if self.packed_why_not else "")
        if self.stream.num_experts:
            kept = f"{self.stream.expert_slots} of {self.stream.num_experts} in memory"
            return f"experts: {kept}, the others on disk{self._packed_in}"
        if self.stream.num_neurons:
            return f"sparse-ffn: {self.stream.neuron_slots} of {self.stream.num_neurons} neurons of a layer in memory"
        if not self.stream.streamed:
            return "resident: all of it fits, so that nothing is read from disk"
        per_step, kept = format_bytes(self.stream.step_bytes), format_bytes(self.stream.resident_bytes)
        said = f"stream: {kept} in memory, {per_step} read from disk at every step{self._packed_in}"
        if self.streams_packed and self.packed is not None:
            return f"{said}, from {self.packed.file}"
        return said + (f"; {self.packed_why_not}" if self.packed_why_not else "")

    @property
    def _packed_in(self) -> str:
        if self.spool is None:
            return ""
        return f", packed for it in {self.spool} ({format_bytes(self.spool_bytes)})"

    @property
    def kv_fingerprint(self) -> str:
        """``fingerprint``, and how many blocks of a stack are there: what KV that is computed now is keyed with."""
        partly = self.stacks is not None and self.stacks.num_kept < self.stacks.num_levels
        return f"{self.fingerprint}/{self.stacks.num_kept}" if self.stacks is not None and partly else self.fingerprint

    @property
    def chat_template(self) -> str | None:
        """The text of the default chat template, or None."""
        return self.chat_templates.get("default")

    def chat(self, override: str | None = None) -> ChatTemplate:
        """The model's chat template, or ``override``: a template's text, a file, or the name of another of its own."""
        return ChatTemplate.of(self.chat_templates, self.tokenizer, override)

    def close(self, *, keeps_tokenizer: bool = False) -> None:
        """Gives weights and every lease that loading took back to the ledger; the tokenizer's stays where it goes on
        being used. Calling it again does no harm.
        """
        self.model.unload()
        self.footprint.release(but="tokenizer" if keeps_tokenizer else None)


def load_model(
    path_or_id: str | Path,
    *,
    dtype: str = "auto",
    quantization: str = "auto",
    device: str | torch.device = "cpu",
    ledger: Ledger | None = None,
    max_model_len: int | None = None,
    weights: str = "auto",
    room: RoomFor | None = None,
    expert_cache: str = "traced",
    spool_dir: str | None = None,
    use_packed: bool = True,
    progress: Progress | None = None,
) -> Loaded:
    """Loads a model into memory that it leases first: accounts ``weights``, ``tokenizer``, ``runtime`` where
    transformers has to be imported, and ``staging`` while it reads.

    ``quantization`` is a weight format as text (`weights.quantization`), ``none``: plain tensors in the model's dtype,
    or ``auto``: the checkpoint's own format, and unquantized weights in the order that this machine's kernels read.
    ``max_model_len`` is the longest sequence that will be run (rotary scalings that depend on it; default: the
    model's own). ``progress(done_bytes, total_bytes)`` is called after every tensor.
    ``weights``: ``stream`` leaves on disk what ``room`` has no place for, to be read at every step; ``resident`` never
    does; ``sparse-ffn`` leaves the neurons of ReLU layers there, to be read when they are active (`neuron_file`);
    ``auto`` streams where a room is given and the model does not fit it. Of a mixture the experts stay on disk, with
    a cache whose policy is ``expert_cache``: lru, lfu, traced or early. What cannot be read as it lies
    is packed once into a file in ``spool_dir`` (`spool`; default: the user's cache folder).
    ``use_packed``: a file of `pagoda pack` beside the model that fits is mapped (`packed_file`).
    Raises ModelError (with UnsupportedModelError, WeightsError), ConfigError, BudgetError: one line each; what was
    leased has been given back then.
    """
    where, footprint = resolve_device(device), Footprint(ledger)
    asked = parse_quantization(quantization) if quantization.strip() != "auto" else None
    try:
        return _load(
            resolve(path_or_id), dtype, asked, where, footprint, max_model_len, (weights, room), expert_cache,
            spool_dir, use_packed, progress,
        )  # fmt: skip
    except BaseException:
        footprint.release()
        raise


def _load(
    path: Path,
    dtype: str,
    asked: Quantization | None,
    device: torch.device,
    footprint: Footprint,
    max_model_len: int | None,
    placement: tuple[str, RoomFor | None],
    expert_cache: str,
    spool_dir: str | None,
    use_packed: bool,
    progress: Progress | None,
) -> Loaded:
    from .spool import Spool, spool_folder

    opened = _open_file(path, footprint) if path.is_file() else _open_folder(path, footprint)
    config, source, tokenizer = opened.config, opened.source, opened.tokenizer
    name, reason = choose_dtype(dtype, config, source.checkpoint, device)
    halves = are_halves(source.checkpoint.entries.values())
    packing = _unquantized(config, name, device, halves) if asked is None else asked
    model = _empty_model(config, getattr(torch, name), packing, device, max_model_len, footprint)
    if asked is None and source.formats and isinstance(model, Model):
        as_stored = model.stored_formats(source.formats)
        model = _empty_model(config, getattr(torch, name), as_stored, device, max_model_len, footprint)
    stacks = BlockStacks(model, source) if isinstance(model, Model) else None
    left_out, (weights, room_for) = 0, placement
    packed, why_not, usable = None, "", None
    if isinstance(model, Model) and device.type == "cpu":
        packed, why_not = _packed_file(path, model, source, config, name, asked)
        usable = packed if use_packed and packed is not None and packed.is_there and not why_not else None
    room = None if room_for is None else room_for(model.shape, name, packing_of(model))
    if stacks is not None and stacks.moves and weights in ("auto", "resident"):
        whole = model.shape.weight_bytes(name, packing_of(model))
        how_read = Streaming(None, stacks.fit(source, whole, room if weights == "auto" else None))
        left_out = stacks.missing_bytes
    else:
        spool = Spool(spool_folder(spool_dir), footprint, progress)
        pack = partial(spool.source, config=config)
        how_read = choose_stream(path, model, source, name, weights, room, pack, usable)
    plan = how_read.plan
    filling = Filling(model, how_read.source, name, footprint, progress, () if room is None else room.beside)
    cache = neurons = None
    if left_out:
        packed, why_not, usable = None, "", None
    plain = packing.is_plain and not source.formats  # packed weights take the same in any dtype
    with offering_half(reason if plain else ""):
        if plan is None:
            lease = filling.whole(how_read.why_not, left_out) if usable is None else filling.mapped(usable)
            if stacks is not None:
                stacks.begin(lease)
        elif plan.num_experts:
            cache = filling.around_experts(plan, expert_cache)
        elif plan.num_neurons:
            neurons = filling.around_neurons(plan)
        else:
            filling.streamed(plan, how_read.packed)
    quantization = getattr(model, "quantization", Quantization())
    how = (name, quantization, model.rope_length, type(model).__name__, stamps(source.checkpoint))
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        shape=model.shape,
        generation=opened.generation,
        eos_ids=end_ids(path, opened.generation, config, tokenizer),
        chat_templates=opened.chat_templates,
        fingerprint=fingerprint(source.checkpoint, config, *how),
        path=path,
        config=config,
        dtype=name,
        dtype_reason=reason,
        quantization=quantization,
        footprint=footprint,
        stream=plan,
        spool=how_read.source.checkpoint.files[0] if how_read.spooled else None,
        spool_bytes=how_read.source.checkpoint.num_bytes if how_read.spooled else 0,
        experts=cache,
        neurons=neurons,
        stacks=stacks,
        packed=packed,
        packed_why_not=why_not,
        streams_packed=how_read.packed is not None,
    )


def _packed_file(
    path: Path,
    model: Model,
    source: TensorSource,
    config: Mapping[str, Any],
    dtype: str,
    asked: Quantization | None,
) -> tuple[PackedFile | None, str]:
    """Where the model's packed weights lie or would lie; and why a file that is there is left alone."""
    if model.quantization.is_plain:  # nothing is in panels
        folder, chosen = packed_folder(path), asked is None
        alone = f"{folder} is left alone: the kernels of this machine read rows, not panels"
        return None, alone if chosen and folder.is_dir() else ""
    packed = PackedFile(path, model, source.checkpoint, config, dtype)
    if not packed.is_there:
        names = ", ".join(packed.others) if asked is None else ""
        return packed, f"{packed.file} is not there, only {names}; run `pagoda pack` again" if names else ""
    reason = packed.why_not()
    again = "run `pagoda pack` again"
    return packed, "" if reason is None else f"{packed.file} is left alone: {reason}; {again}, or delete it"


@dataclass(frozen=True)
class _Opened:
    """What a model's files say, before any weight is read."""

    config: dict[str, Any]
    source: TensorSource
    tokenizer: Tokenizer
    generation: dict[str, Any]
    chat_templates: dict[str, str]


def _open_folder(folder: Path, footprint: Footprint) -> _Opened:
    config = read_config(folder)
    source = open_source(Checkpoint.open(folder), quantization_config(config))
    tokenizer = _tokenizer(folder, config, footprint)
    return _Opened(config, source, tokenizer, read_generation(folder), read_templates(folder))


def _open_file(file: Path, footprint: Footprint) -> _Opened:
    from .gguf import open_gguf

    # The metadata is nearly all tokenizer: tokens, scores and merges, at most half of the file.
    room = min(file.stat().st_size, GGUF_HEADER_BYTES)
    with footprint.measured("tokenizer", tokenizer_bytes(room), file.name):
        found = open_gguf(file)
    return _Opened(found.config, found.source, found.tokenizer, {}, found.chat_templates)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` names. Raises ConfigError if it is not there."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(choices("device", device, "auto, cpu, cuda, cuda:0, …")) from error
    if found.type == "cuda" and not (found.index or 0) < torch.cuda.device_count():
        raise ConfigError(
            f"device {str(device)!r}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(choices("device", str(device), "auto, cpu, cuda, cuda:0, …"))
    return found


def _tokenizer(folder: Path, config: Mapping[str, Any], footprint: Footprint) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        with _transformers_room(footprint):
            return Tokenizer.from_dir(folder, text_config(config))
    with footprint.measured("tokenizer", tokenizer_bytes(file.stat().st_size), file.name):
        return Tokenizer.from_dir(folder, text_config(config))


def _empty_model(
    config: Mapping[str, Any],
    dtype: torch.dtype,
    quantization: Quantization,
    device: torch.device,
    max_model_len: int | None,
    footprint: Footprint,
) -> Model | FallbackModel:
    if families.is_native(config):
        options = {"dtype": dtype, "device": device, "rope_length": max_model_len}
        return Model.from_config(config, quantization=quantization, **options)
    if not quantization.is_plain:
        raise UnsupportedModelError(
            f"quantization={str(quantization)!r}: {config['model_type']} runs in transformers' modules, whose weights "
            f"stay as they are; leave quantization out, or take a native family: {', '.join(families.names())}"
        )
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    with _transformers_room(footprint):
        from .fallback import FallbackModel

        return FallbackModel.from_config(plain, dtype=dtype, device=device, rope_length=max_model_len)


def _unquantized(config: Mapping[str, Any], dtype: str, device: torch.device, halves: bool) -> Quantization:
    """The model's own numbers, in the order in which the C++ kernels read them where those serve: AVX2 at least.
    ``halves``: they are stored in float16.
    """
    if device.type != "cpu" or dtype not in ("float32", "bfloat16") or not families.is_native(config):
        return Quantization()
    if load_providers()["cpu"] is not None:
        return Quantization()
    from pagoda.kernels.cpu import best_isa

    isa = best_isa()
    return Quantization() if isa == "base" else in_panels(dtype, halves=halves, isa=isa)


def _transformers_room(footprint: Footprint) -> AbstractContextManager[None]:
    """Room for transformers' code; none where it has been imported before, and is part of the runtime."""
    if "transformers.modeling_utils" in sys.modules:
        return nullcontext()
    return footprint.measured("runtime", TRANSFORMERS_BYTES, "transformers")
