"""`Model`: a native decoder that is built from a config, filled tensor by tensor, and run over a KV view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pagoda.core.errors import ModelError, WeightsError

from .decoder import Decoder
from .families import read_spec
from .layers.step import KVView
from .params import parameters
from .shape import ModelShape
from .sources import Piece, Region, source_table
from .spec import DecoderSpec

EMBED, HEAD = "embed.weight", "lm_head.weight"


class Model:
    """A decoder-only language model.

    Built empty; `load_tensor` fills it in any order, allocating each parameter when its first bytes arrive, so peak
    memory is the model plus one tensor. `finish_loading` checks that nothing is missing and makes it ready to run.

    ``rope_length`` is the engine's longest sequence (default: the config's maximum). It decides the two rotary
    scalings that depend on length (dynamic, longrope) once for all sequences.
    """

    def __init__(self, spec: DecoderSpec, *, dtype: torch.dtype, device: torch.device, rope_length: int) -> None:
        self.spec, self.dtype, self.device, self.rope_length = spec, dtype, device, rope_length
        self.shape = ModelShape.from_spec(spec)
        self._params = parameters(spec)
        self._sources = source_table(spec)
        self._weights: dict[str, Tensor] = {}
        self._covered: set[Region] = set()
        self._decoder: Decoder | None = None

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rope_length: int | None = None,
    ) -> Model:
        """An empty model of a Hugging Face config dict. Raises ModelError for what the family does not know."""
        spec = read_spec(config)
        return cls(spec, dtype=dtype, device=torch.device(device), rope_length=rope_length or spec.max_position)

    # --- running

    def forward(self, token_ids: Tensor, positions: Tensor, kv: KVView) -> Tensor:
        """One ragged packed batch: token_ids, positions ``[T]`` int64 -> hidden ``[T, hidden_size]``."""
        return self._ready().forward(token_ids, positions, kv)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden ``[N, hidden_size]`` -> float32 ``[N, vocab_size]``."""
        return self._ready().logits(hidden)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter by our name; a tied head is not listed twice."""
        return dict(self._weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that are allocated now."""
        return sum(w.nbytes for w in self._weights.values())

    def _ready(self) -> Decoder:
        if self._decoder is None:
            raise ModelError(f"the {self.spec.family} model is not loaded; call finish_loading() after its tensors")
        return self._decoder

    # --- loading

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a checkpoint of this model normally holds."""
        return self._sources.expected()

    def load_tensor(self, name: str, tensor: Tensor) -> bool:
        """Place one checkpoint tensor, converting its dtype. False: the tensor is of no use to this model.

        Raises WeightsError for an unknown name, a wrong shape or a type that holds no numbers for us.
        """
        source = self._sources.find(name)
        if source is None:
            if self._sources.ignorable(name):
                return False
            raise WeightsError(
                f"unexpected tensor {name!r} {list(tensor.shape)} in a {self.spec.family} checkpoint; "
                f"it belongs to no part of this architecture"
            )
        if tuple(tensor.shape) != source.shape:
            raise WeightsError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but this {self.spec.family} config needs "
                f"{list(source.shape)}; the checkpoint and its config.json do not belong together"
            )
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise WeightsError(
                f"tensor {name!r} is stored as {tensor.dtype}; accepted: float32, float16, bfloat16, float64 "
                f"(quantized checkpoints need a weight format)"
            )
        if source.tied_head:
            self._storage(HEAD).copy_(tensor)
            return not self._drop_equal_head()
        if source.alternative and all(piece.region in self._covered for piece in source.pieces):
            return False
        for piece in source.pieces:
            self._place(piece, tensor)
        if self.spec.tied:
            self._drop_equal_head()
        return True

    def finish_loading(self) -> Model:
        """Check that every tensor came, tie the head where the checkpoint has none, and get ready to run."""
        if self.spec.tied and EMBED not in self._weights and HEAD in self._weights:
            self._weights[EMBED] = self._weights.pop(HEAD)
            self._covered.add((EMBED, -1, 0))
        missing = self._sources.missing(self._covered)
        if f"{self.spec.names.lm_head}.weight" in missing:
            missing.remove(f"{self.spec.names.lm_head}.weight")
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise WeightsError(f"{len(missing)} tensors are missing from this {self.spec.family} checkpoint: {shown}")
        self._decoder = Decoder(self.spec, self._weights, rope_length=self.rope_length)
        return self

    def init_random(self, seed: int = 0, std: float = 0.02) -> Model:
        """Fill every parameter from a seed instead of a checkpoint (norm weights around 1) and get ready to run."""
        generator = torch.Generator().manual_seed(seed)
        for name, param in self._params.items():
            target = self._storage(name)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            for row in target if len(param.shape) > 1 else (target,):
                row.copy_(torch.randn(row.shape, generator=generator) * std + centre)
        self._covered = {piece.region for s in self._sources.entries.values() for piece in s.pieces}
        return self.finish_loading()

    def _drop_equal_head(self) -> bool:
        """A tied model whose checkpoint stores a head as well: the head stays only if its values are others.

        transformers ignores the config then, and so do we: the planned bytes are exceeded by one embedding matrix.
        """
        if EMBED not in self._weights or HEAD not in self._weights:
            return False
        if not torch.equal(self._weights[EMBED], self._weights[HEAD]):
            return False
        del self._weights[HEAD]
        return True

    def _place(self, piece: Piece, tensor: Tensor) -> None:
        target = self._storage(piece.param)
        if piece.expert >= 0:
            target = target[piece.expert]
        if piece.stop:
            target = target[piece.start : piece.stop]
        part = tensor.view(piece.view) if piece.view else tensor
        if piece.select:
            part = part[piece.select]
        if piece.permute:
            part = part.permute(piece.permute)
        target.copy_(part.reshape(target.shape))
        self._covered.add(piece.region)

    def _storage(self, name: str) -> Tensor:
        """The parameter's tensor, allocated at first use; vectors start as zeros, since a bias may be partly given."""
        if name not in self._weights:
            param = self._params[EMBED if name == HEAD and self.spec.tied else name]
            dtype = torch.float32 if param.float32 else self.dtype
            make = torch.zeros if len(param.shape) == 1 else torch.empty
            self._weights[name] = make(param.shape, dtype=dtype, device=self.device)
        return self._weights[name]
