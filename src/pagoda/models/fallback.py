"""Models without a native family file: transformers' own modules, with our paged attention as their attention function.

A step's ragged batch goes in as one packed row, so chunked prefill, prefix sharing, preemption and every KV policy work
as they do for native models. What such a model costs: transformers' import (2.5 s, 240 MB), and its Python in every
layer. Architectures that cannot run this way are refused by name (``_transformers.causal_lm``, ``fallback_check``).
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pagoda.core.errors import ModelError, UnsupportedModelError, WeightsError

from . import _transformers
from .fallback_adapters import adapt
from .fallback_attention import attending
from .fallback_check import check
from .layers.step import KVView
from .scores import Scores, scored_by_parts
from .shape import ModelShape

NO_LIMIT = 1 << 20  # positions of a model whose config names none


class FallbackModel:
    """A causal LM of transformers over a KV view; the same interface as ``Model``.

    ``load_tensor`` keeps each tensor in the dtype that it will have; ``finish_loading`` hands them to transformers,
    which renames and merges them. Peak memory: the model, one tensor, and one layer's experts where they are merged.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device, rope_length: int | None):
        self.dtype, self.device = dtype, device
        self._config, self._kind = _transformers.causal_lm(config)
        self._name = str(config.get("model_type"))
        check(self._name, self._kind, self._config)
        skeleton = _transformers.new_module(self._kind, self._config, dtype=dtype, device="meta")
        skeleton.tie_weights()
        _transformers.use_paged_attention(adapt(skeleton))
        self._keeps_float32 = any(p.dtype != dtype for p in skeleton.parameters()) or bool(
            skeleton._get_dtype_plan(dtype)
        )
        longest = int(getattr(self._config, "max_position_embeddings", None) or NO_LIMIT)
        self.rope_length = rope_length or longest
        self.shape = _shape(self._name, self._config, skeleton, longest, dtype)
        self._arriving: dict[str, _Once] = {}
        self._module: Any = None
        self._head: Any = None

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rope_length: int | None = None,
    ) -> FallbackModel:
        """An empty model of a Hugging Face config dict.

        Raises UnsupportedModelError naming an architecture that cannot run on pages, and why.
        """
        return cls(config, dtype=dtype, device=torch.device(device), rope_length=rope_length)

    # --- running

    @torch.no_grad()
    def forward(self, token_ids: Tensor, positions: Tensor, kv: KVView, wanted: Tensor | None = None) -> Tensor:
        """One ragged packed batch: token_ids, positions ``[T]`` int64 -> hidden ``[T, hidden_size]``.

        ``wanted`` int64 ``[N]``: hidden ``[N, hidden_size]`` of these tokens alone.
        """
        with attending(kv):
            out = self._ready().base_model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden if wanted is None else hidden.index_select(0, wanted)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden ``[N, hidden_size]`` -> float32 ``[N, vocab_size]``, with all that the model's own head does."""
        self._ready()
        return self._head(inputs_embeds=hidden[None], use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    in_one_call = False

    def step(
        self, token_ids: list[int], positions: list[int], kv: KVView, wanted: list[int] | None = None, *,
        likeliest: bool = False,
    ) -> Scores:  # fmt: skip
        """``logits(forward(…))`` of the same tokens; the likeliest are left to the sampler."""
        return scored_by_parts(self, token_ids, positions, kv, wanted)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter by transformers' name; a tied head is not listed twice."""
        return {} if self._module is None else {n: p.data for n, p in self._module.named_parameters()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that are allocated now."""
        return sum(t.nbytes for t in self.weights().values()) + sum(once.num_bytes for once in self._arriving.values())

    def unload(self) -> None:
        """Lets every parameter go, whoever still holds the model; it cannot run any more."""
        self._module = self._head = None

    def _ready(self) -> Any:
        if self._module is None:
            raise ModelError(f"the {self._name} model is not loaded; call finish_loading() after its tensors")
        return self._module

    # --- loading

    def load_tensor(self, name: str, tensor: Tensor) -> bool:
        """Takes one checkpoint tensor (a copy, in the model's dtype). Names are checked by ``finish_loading``."""
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            if tensor.dtype in (torch.bool, torch.uint8, torch.int64):
                return False  # old checkpoints hold masks and position ids as tensors; they are no weights
            raise WeightsError(
                f"tensor {name!r} is stored as {tensor.dtype}; accepted: float32, float16, bfloat16, float64"
            )
        dtype = tensor.dtype if self._keeps_float32 else self.dtype
        self._arriving[name] = _Once(tensor.to(dtype, copy=True))
        return True

    def finish_loading(self) -> FallbackModel:
        """Raises WeightsError naming missing, unexpected or ill-shaped tensors; then the model is ready to run."""
        arriving, self._arriving = self._arriving, {}
        return self._run_on(_transformers.fill_module(self._kind, self._config, arriving, self.dtype))

    def init_random(self, seed: int = 0) -> FallbackModel:
        """transformers' random weights instead of a checkpoint."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._run_on(_transformers.new_module(self._kind, self._config, dtype=self.dtype, device="cpu"))

    def _run_on(self, module: Any) -> FallbackModel:
        self._module = adapt(module.requires_grad_(False).to(self.device))
        _transformers.use_paged_attention(self._module)
        freeze_rotary(self._module, self.rope_length)
        self._head = copy.copy(self._module)  # the same weights, with the decoder exchanged for what is given to it
        self._head._modules = {**self._module._modules, self._module.base_model_prefix: _Given()}
        return self


class _Once:
    """A tensor for transformers to take: asked once, forgotten then."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Tensor | None = tensor
        self.dtype, self.shape, self.num_bytes = tensor.dtype, tensor.shape, tensor.nbytes

    def __getitem__(self, _: object) -> Tensor:
        tensor, self._tensor, self.num_bytes = self._tensor, None, 0
        assert tensor is not None, "a checkpoint tensor was asked for twice"
        return tensor


class _Given(nn.Module):
    """In a decoder's place: the hidden states are the input."""

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        assert inputs_embeds is not None
        return _transformers.given_states(inputs_embeds)


def freeze_rotary(module: nn.Module, rope_length: int) -> None:
    """Settles the rotary scalings that depend on length (dynamic, longrope) once, for sequences up to ``rope_length``.

    transformers settles them anew in every pass, from the largest position in it: keys of one sequence would be rotated
    differently before and after it grows, and by what else is in the batch.
    """
    for part in module.modules():
        kind = getattr(part, "rope_type", None)
        for layer_type, name in kind.items() if isinstance(kind, dict) else [(None, kind)]:
            if name not in ("dynamic", "longrope"):
                continue
            embedding: Any = part
            position = torch.full((1, 1), rope_length - 1, device=next(part.buffers()).device)
            states = torch.zeros(1, 1, 1, device=position.device)
            embedding(states, position, *([layer_type] if layer_type is not None else []))
            if isinstance(kind, dict):
                kind[layer_type] = "default"
            else:
                embedding.rope_type = "default"


class _Reached(BaseException):  # past every handler between the probe and its caller
    """Thrown by the probe when attention is called: what it was called with is all that was wanted."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.shapes = q.shape, k.shape, v.shape


class _Probe:
    """A KV view that ends the pass at the first attention."""

    takes_any_mask = True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        raise _Reached(q, k, v)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        raise UnsupportedModelError("latent attention is not asked for by transformers' modules")


def _head_shapes(name: str, skeleton: Any) -> tuple[torch.Size, torch.Size, torch.Size]:
    """q, k, v ``[1, H, D]`` of one token in the first layer, found by running the empty model up to there."""
    takes = inspect.signature(skeleton.base_model.forward).parameters
    if "position_ids" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise UnsupportedModelError(f"architecture {name!r} cannot run on a paged KV cache: it takes no positions")
    for part in skeleton.modules():
        if getattr(part, "rope_type", None) == "dynamic":
            part.rope_type = "default"  # the rule for lengths looks at values, and there are none here
    token = torch.zeros(1, 1, dtype=torch.int64, device="meta")
    # A ready mask, where the model takes one: making its own, transformers looks at the values of positions.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    reason = "it never calls attention"
    for given in ({"attention_mask": mask}, {}):
        try:
            with attending(_Probe()):
                skeleton.base_model(input_ids=token, use_cache=False, **given)
        except _Reached as reached:
            return reached.shapes
        except Exception as error:  # whatever a module does with tensors that hold nothing
            reason = f"the sizes of its KV cannot be found ({_transformers.one_line(error)})"
    raise UnsupportedModelError(f"architecture {name!r} cannot run on a paged KV cache: {reason}")


def _shape(name: str, config: Any, skeleton: Any, longest: int, dtype: torch.dtype) -> ModelShape:
    q, k, v = _head_shapes(name, skeleton)
    hidden, vocab = int(config.hidden_size), int(config.vocab_size)
    kept = [".*".join(map(re.escape, pattern.split("*"))) for pattern in skeleton._get_dtype_plan(dtype)]
    return ModelShape(
        family=name,
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=int(config.num_hidden_layers),
        num_q_heads=q[1],
        num_kv_heads=k[1],
        k_dim=k[2],
        v_dim=v[2],
        max_position=longest,
        windows=(0,) * int(config.num_hidden_layers),  # not to be seen from outside: nothing may be dropped
        num_params=sum(p.numel() for p in skeleton.parameters()),
        num_float32_params=sum(p.numel() for n, p in skeleton.named_parameters() if any(re.search(k, n) for k in kept)),
        attention_floats=4 * (q[1] * q[2] + k[1] * k[2] + v[1] * v[2]) + 2 * q[1] * v[2],
        mlp_floats=_widest(config, skeleton, hidden, vocab),
        scores_written=True,  # soft caps and sinks are arguments of the call, unknown until then
    )


def _widest(config: Any, skeleton: Any, hidden: int, vocab: int) -> int:
    """Elements per token alive inside the widest feed-forward: what goes in, and five of its inner vectors."""
    inner = 0
    for weight in skeleton.parameters():
        if weight.dim() == 2 and vocab not in weight.shape:
            inner = max(inner, *weight.shape)
        elif weight.dim() == 3:  # stacked experts: every token passes several
            chosen = int(getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_topk", None) or 2)
            inner = max(inner, chosen * max(weight.shape[1:]))
    return 5 * inner + 2 * hidden
