"""`Model`: a native decoder that is built from a config, filled tensor by tensor, and run over a KV view."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pagoda.core.errors import ModelError, WeightsError
from pagoda.weights.built_rows import BuiltRows
from pagoda.weights.expert_cache import CachedExperts
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.header import TensorEntry
from pagoda.weights.packed import ExpertStack, PackedMatrix, PanelMatrix, equal
from pagoda.weights.quantization import EXPERT, Quantization, Role
from pagoda.weights.rows import STORED, StoredMatrix, StoredRows, runs_of
from pagoda.weights.schemes.pagoda import CODE
from pagoda.weights.schemes.pagoda import PREFIX as OWN_PREFIX
from pagoda.weights.source import TensorSource

from .decoder import Decoder
from .families import read_spec
from .layers.sparse_mlp import InRows, SparseNeurons
from .layers.step import KVView
from .params import parameters
from .scores import Scores, scored_by_parts
from .shape import ModelShape
from .sources import Piece, Source, source_table
from .spec import DecoderSpec
from .store import NewFilling, WeightStore
from .stored import EMBED, stored_formats, stored_rows

HEAD = "lm_head.weight"


class Model:
    """A decoder-only language model.

    Built empty; `load_tensor` fills it in any order, allocating each parameter when its first bytes arrive, so peak
    memory is the model plus one tensor. `finish_loading` checks that nothing is missing and makes it ready to run.

    ``rope_length`` is the engine's longest sequence (default: the config's maximum). It decides the two rotary
    scalings that depend on length (dynamic, longrope) once for all sequences.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rope_length: int,
        quantization: Quantization | None = None,
    ) -> None:
        self.spec, self.dtype, self.device, self.rope_length = spec, dtype, device, rope_length
        self.shape = ModelShape.from_spec(spec)
        self.quantization = quantization or Quantization()
        self._params = parameters(spec)
        self._sources = source_table(spec)
        self._store = WeightStore(self._params, self._sources.regions(), self.quantization, dtype, device)
        self._decoder: Decoder | None = None

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rope_length: int | None = None,
        quantization: Quantization | None = None,
    ) -> Model:
        """An empty model of a Hugging Face config dict. Raises ModelError for what the family does not know."""
        spec, where = read_spec(config), torch.device(device)
        length = rope_length or spec.max_position
        return cls(spec, dtype=dtype, device=where, rope_length=length, quantization=quantization)

    # --- running

    def forward(self, token_ids: Tensor, positions: Tensor, kv: KVView, wanted: Tensor | None = None) -> Tensor:
        """One ragged packed batch: token_ids, positions ``[T]`` int64 -> hidden ``[T, hidden_size]``.

        ``wanted`` int64 ``[N]``: hidden ``[N, hidden_size]`` of these tokens alone (see `Decoder.forward`).
        """
        return self._ready().forward(token_ids, positions, kv, wanted)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden ``[N, hidden_size]`` -> float32 ``[N, vocab_size]``."""
        return self._ready().logits(hidden)

    def step(
        self, token_ids: list[int], positions: list[int], kv: KVView, wanted: list[int] | None = None, *,
        likeliest: bool = False,
    ) -> Scores:  # fmt: skip
        """``logits(forward(…))`` of the same tokens, in one call where one program runs the whole step.

        The logits are valid until the next step. ``likeliest``: the best token of each row is looked for as well
        (`kernels.ops.greedy`), where that costs no call of its own; where all rows have one, nobody may look at the
        logits, which need not have been written then.
        """
        done = self._ready().step(token_ids, positions, kv, wanted, likeliest)
        return scored_by_parts(self, token_ids, positions, kv, wanted) if done is None else Scores(*done)

    @property
    def in_one_call(self) -> bool:
        """Whether ``step`` is one call where its KV view has arrays of the whole step."""
        return self._ready().in_one_call

    @property
    def op_by_op(self) -> str | None:
        """Why the layers run one op at a time, in words; None where one program runs them all (`models.program`)."""
        return self._ready().op_by_op

    def timings(self) -> dict[str, tuple[int, float]]:
        """Calls and seconds inside the program by kind of instruction; empty unless ``PAGODA_PROFILE`` is set."""
        return self._ready().timings()

    def weights(self) -> dict[str, Any]:
        """Every parameter by our name, a Tensor or a matrix in its weight format; a tied head is not listed twice."""
        return dict(self._store.weights)

    def shape_role(self, name: str) -> Role:
        """What a parameter is for."""
        return self._params[name if name in self._params else EMBED].role

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that are allocated now."""
        return self._store.num_bytes

    @property
    def beyond_bytes(self) -> int:
        """Of these, what the shape did not tell: exponents that lie far apart in a matrix of bf12."""
        return self._store.beyond_bytes

    @property
    def num_widened(self) -> int:
        """Matrices in another order than was asked for: of bf12, those whose exponents lie far apart."""
        found = 0
        for matrix in self.shape.matrices:
            weight = self._store.weights.get(matrix.name)
            each = enumerate(weight.experts) if isinstance(weight, ExpertStack) else [(-1, weight)]
            for expert, one in each:
                asked = self.quantization.of(matrix.name, matrix.role, expert)
                found += isinstance(one, PanelMatrix) and asked is not None and one.format.kernel != asked.kernel
        return found

    def unload(self) -> None:
        """Lets every parameter go, whoever still holds the model; it cannot run any more."""
        self._decoder = None
        self._store.weights.clear()

    def _ready(self) -> Decoder:
        if self._decoder is None:
            raise ModelError(f"the {self.spec.family} model is not loaded; call finish_loading() after its tensors")
        return self._decoder

    # --- loading

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a checkpoint of this model normally holds."""
        return self._sources.expected()

    def load_order(self, names: Iterable[str]) -> list[str]:
        """Checkpoint names in an order that completes one matrix after another; what is of no use comes last."""
        rank = {name: i for i, name in enumerate(self._params)}

        def place(name: str) -> tuple[int, int]:
            source = self.source_of(name)
            if source is None:
                return (len(rank), 0)
            if source.tied_head:
                return (rank[EMBED], 1)
            return min((rank[piece.param], piece.expert) for piece in source.pieces)

        return sorted(names, key=place)

    def stored_formats(self, formats: Mapping[str, WeightFormat]) -> Quantization:
        """As `stored.stored_formats`: every matrix as a checkpoint with these packed tensors has it."""
        return stored_formats(self.source_of, self._sources.regions(), formats)

    def packing_bytes(self, names: Iterable[str], formats: Mapping[str, WeightFormat]) -> int:
        """Bytes that packing these tensors takes at the largest matrix; codes that come ready (``formats``, of packed
        tensors by name) are only put in their place, at most a block of them at a time.
        """
        most = 0
        for name in names:
            for piece in self.pieces(name):
                param, stored = self._params[piece.param], formats.get(name)
                wanted = self.quantization.each(piece.param, param.role, param.shape[0])
                if piece.expert >= 0 or len(param.shape) < 3:
                    wanted = {self.quantization.of(piece.param, param.role, piece.expert): 1}
                for format in wanted:
                    ready = stored is not None and format is not None and format.same_codes(stored) and piece.is_rows
                    if format is not None and not (ready and not format.kernel):
                        most = max(most, format.scratch_bytes(*param.shape[-2:]))
        return most

    def stored_rows(self, source: TensorSource) -> tuple[dict[str, StoredRows | BuiltRows], dict[str, str]]:
        """As `stored.stored_rows`."""
        return stored_rows(self.source_of, self.shape, self.quantization, source.logical, source.checkpoint.entries)

    def expert_rows(self, source: TensorSource) -> tuple[dict[tuple[str, int], StoredMatrix], str | None]:
        """Every expert's matrices by parameter and expert; or why they cannot be taken as they lie."""
        parts: dict[tuple[str, int], list[tuple[int, int, TensorEntry]]] = {}
        beside: dict[tuple[str, int], dict[str, TensorEntry]] = {}
        for name, logical in source.logical.items():
            found = self.source_of(name)
            for piece in () if found is None else found.pieces:
                if self._params[piece.param].role != "experts":
                    continue
                ours = logical.format is None or name.startswith(OWN_PREFIX)
                if logical.rows is None or not ours or not piece.is_rows or piece.expert < 0:
                    return {}, f"tensor {name!r} does not hold one expert's rows in plain numbers or our own codes"
                entries, at = source.checkpoint.entries, (piece.param, piece.expert)
                entry = entries[logical.rows]
                parts.setdefault(at, []).append((piece.start, entry.shape[0], entry))
                if logical.format is not None:
                    beside[at] = {kind: entries[f"{name}{CODE}{kind}"] for kind in logical.format.beside}
        rows: dict[tuple[str, int], StoredMatrix] = {}
        for (param, expert), found_parts in sorted(parts.items()):
            kept, shape = self.quantization.of(param, "experts", expert), self._params[param].shape
            format = None if kept is None else kept.read_as
            stored, scales = format is not None and format.kernel in STORED, beside.get((param, expert), {})
            if format is None or not stored or set(format.beside) != scales.keys():
                return {}, "its experts' format is not multiplied as it is stored"
            matrix = StoredRows(format.kernel, shape[1], shape[2], runs_of(found_parts))
            if (reason := matrix.why_not()) is not None:
                return {}, reason
            if matrix.converts and matrix.dtype == "F32":  # twice what is read of an expert, for the same cache
                return {}, "its experts are stored in float32; leave --dtype out"
            rows[param, expert] = StoredMatrix(format, matrix, scales)
        return rows, None

    def keep(self, name: str, weight: PackedMatrix | CachedExperts | SparseNeurons | InRows) -> None:
        """A parameter that comes ready, whole."""
        self._store.keep(name, weight)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """What a checkpoint tensor fills; the head of a tied model fills what its embedding does."""
        found = self.source_of(name)
        if found is None:
            return ()
        return (Piece(EMBED),) if found.tied_head else found.pieces

    def take(self, name: str) -> Tensor:
        """A plain parameter that has been filled, which the model then no longer has. Raises KeyError."""
        found: Tensor = self._store.weights.pop(name)  # type: ignore[assignment]
        return found

    def pack_by(self, new_filling: NewFilling, roles: Iterable[Role] = ("linear", "experts", "embed")) -> None:
        """Matrices of these roles are packed by this, not by `weights.filling.new_filling`. Before the first tensor."""
        self._store.pack_by(new_filling, roles)

    def take_complete(self) -> list[tuple[str, int, Any]]:
        """(parameter, expert or -1, weight) of all that has been filled whole, which the model then no longer has."""
        return self._store.take_complete()

    def is_tied_head(self, name: str) -> bool:
        """Whether a checkpoint tensor is the head of a model whose config ties it to the embedding."""
        found = self.source_of(name)
        return found is not None and found.tied_head

    def fills_only(self, name: str, params: Collection[str]) -> bool:
        """Whether a checkpoint tensor fills nothing but these parameters."""
        found = self.source_of(name)
        return found is not None and bool(found.pieces) and all(piece.param in params for piece in found.pieces)

    def source_of(self, name: str) -> Source | None:
        """Where a checkpoint tensor goes; ``pagoda.<our name>`` of our own checkpoints goes there as it is."""
        if not name.startswith(OWN_PREFIX):
            return self._sources.find(name)
        ours, _, expert = name.removeprefix(OWN_PREFIX).partition(EXPERT)
        param = self._params.get(ours)
        if param is None:
            return None
        if not expert:
            return Source(param.shape, (Piece(ours),))
        return Source(param.shape[1:], (Piece(ours, expert=int(expert)),)) if expert.isdecimal() else None

    def takes_rows(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether ``load_tensor`` takes this checkpoint tensor some rows at a time. False where its shape is wrong."""
        found = self.source_of(name)
        if found is None or found.tied_head or found.alternative or found.shape != shape:
            return False
        return len(found.pieces) == 1 and self._store.takes_rows(found.pieces[0])

    def load_tensor(self, name: str, tensor: Tensor | PackedMatrix, start: int | None = None) -> bool:
        """Place one checkpoint tensor, converting its type. False: the tensor is of no use to this model.

        ``start``: these are its rows from there, which come in order (``takes_rows``).

        Raises WeightsError for an unknown name, a wrong shape or a type that holds no numbers for us.
        """
        source = self.source_of(name)
        if source is None:
            if self._sources.ignorable(name):
                return False
            raise WeightsError(
                f"unexpected tensor {name!r} {list(tensor.shape)} in a {self.spec.family} checkpoint; "
                f"it belongs to no part of this architecture"
            )
        if start is None and tuple(tensor.shape) != source.shape:
            raise WeightsError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but this {self.spec.family} config needs "
                f"{list(source.shape)}; the checkpoint and its config.json do not belong together"
            )
        if isinstance(tensor, Tensor) and (not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2):
            raise WeightsError(
                f"tensor {name!r} is stored as {tensor.dtype}; accepted: float32, float16, bfloat16, float64 "
                f"(quantized checkpoints need a weight format)"
            )
        if source.tied_head:
            self._store.put_whole(HEAD, EMBED, tensor)
            return not self._drop_equal_head()
        if source.alternative and all(piece.region in self._store.covered for piece in source.pieces):
            return False
        first = start or 0
        complete = start is None or first + tensor.shape[0] == source.shape[0]
        for piece in source.pieces:
            try:
                self._store.place(piece, tensor, first, complete=complete)
            except WeightsError as error:
                raise WeightsError(f"tensor {name!r}: {error}") from error
        if self.spec.tied and complete:
            self._drop_equal_head()
        return True

    def finish_loading(self) -> Model:
        """Check that every tensor came, tie the head where the checkpoint has none, and get ready to run."""
        weights = self._store.weights
        if self.spec.tied and EMBED not in weights and HEAD in weights:
            weights[EMBED] = weights.pop(HEAD)
            self._store.covered.add((EMBED, -1, 0))
        self.check_complete()
        self._decoder = Decoder(self.spec, weights, rope_length=self.rope_length)
        return self

    def check_complete(self) -> None:
        """Raises WeightsError naming tensors that have not come."""
        missing = self._sources.missing(self._store.covered)
        if f"{self.spec.names.lm_head}.weight" in missing:
            missing.remove(f"{self.spec.names.lm_head}.weight")
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise WeightsError(f"{len(missing)} tensors are missing from this {self.spec.family} checkpoint: {shown}")

    def init_random(self, seed: int = 0, std: float = 0.02) -> Model:
        """Fill every parameter from a seed instead of a checkpoint (norm weights around 1) and get ready to run."""
        generator = torch.Generator().manual_seed(seed)
        for name, param in self._params.items():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            for expert in range(param.shape[0]) if len(param.shape) == 3 else (-1,):
                shape = param.shape[1:] if len(param.shape) == 3 else param.shape
                tensor = torch.empty(shape, dtype=torch.float32 if param.float32 else self.dtype)
                for row in tensor if len(shape) > 1 else (tensor,):
                    row.copy_(torch.randn(row.shape, generator=generator) * std + centre)
                self._store.fill_whole(name, expert, tensor)
        self._store.covered |= self._sources.regions()
        return self.finish_loading()

    def _drop_equal_head(self) -> bool:
        """A tied model whose checkpoint stores a head as well: the head stays only if its values are others.

        transformers ignores the config then, and so do we: the planned bytes are exceeded by one embedding matrix.
        """
        weights = self._store.weights
        if EMBED not in weights or HEAD not in weights or not equal(weights[EMBED], weights[HEAD]):
            return False
        del weights[HEAD]
        return True
