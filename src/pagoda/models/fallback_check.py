"""Does paged attention give this architecture the same numbers as its own? Asked before its first weights are read.

A small copy of the architecture (the checkpoint's config with small sizes, a few layers of every kind that it has,
short windows, random weights) runs twice: each sequence alone through transformers' own eager attention, and two
sequences packed together in unequal chunks through ours. What differs is refused: a mask that we would ignore
(bidirectional, chunked, sparse), attention that does not go through transformers' interface, state beside the KV,
positions that are counted inside the model. It takes about 0.1 s, once for an architecture and process. In
transformers 5.23, 68 architectures agree to 5e-7 of logits around 0.5, and those that do not differ by 2e-4 or more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pagoda.core.errors import PagodaError, UnsupportedModelError

from . import _transformers
from .fallback_adapters import adapt, has_adapter, unused_mask
from .fallback_attention import attending, attention

LENGTHS = (29, 11)
CHUNKS = ((7, 11), (13, 0), (1, 0), (8, 0))  # tokens of the two sequences in each step
TOLERANCE = 2e-5  # of the largest logit
MAX_LAYERS, MAX_PARAMS = 8, 20_000_000
NO_INTERFACE = "its attention does not go through transformers' attention interface"
_OWN_STATE = ("Indexer", "Compressor", "StaticCache", "Mamba", "ShortConv", "DeltaNet")

# Sizes of the small copy, by the names that configs use. A key that a config does not have, or has as null, stays so.
SMALL: dict[str, int] = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "embedding_size": 64,
    "intermediate_size": 96, "n_inner": 96, "ffn_dim": 96, "ffn_hidden_size": 96, "intermediate_size_mlp": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "window_size": 5,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "head_dim": 16, "kv_channels": 16, "vocab_size": 160,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_num_experts": 4, "moe_k": 2,
    "expert_ffn_hidden_size": 32, "zero_expert_num": 2,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "sliding_window": 5, "attention_chunk_size": 5, "index_topk": 4, "rotary_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def check(name: str, kind: Any, parsed: Any) -> None:
    """Raises UnsupportedModelError if this architecture, with this config's features, does not agree with itself."""
    reason: str | None = NO_INTERFACE
    if _transformers.has_interface(kind) or has_adapter(kind):
        reason = _verdict(kind, parsed.__class__, json.dumps(small_config(parsed), sort_keys=True, default=str))
    if reason is not None:
        raise UnsupportedModelError(f"architecture {name!r} cannot run on a paged KV cache: {reason}")


@lru_cache(maxsize=64)
def _verdict(kind: Any, config_class: Any, config: str) -> str | None:
    """Why not, or None. Cached by the small config: the features decide, not the sizes."""
    try:
        with _transformers.quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return _compare(kind, config_class.from_dict(json.loads(config)))
    except PagodaError as error:
        return str(error)
    except Exception as error:  # whatever a module does with inputs that it does not expect
        return f"a small copy of it does not run in one packed batch ({_transformers.one_line(error)})"


def _compare(kind: Any, small: Any) -> str | None:
    skeleton = _transformers.new_module(kind, small, dtype=torch.float32, device="meta")
    count = sum(p.numel() for p in skeleton.parameters())
    if count > MAX_PARAMS:
        return f"no small copy of it can be made to check it with ({count} parameters)"
    module = _transformers.new_module(kind, small, dtype=torch.float32, device="cpu")
    for own in _OWN_STATE:
        if any(own in type(part).__name__ for part in module.modules()):
            return f"it selects, compresses or keeps its past by itself ({own})"
    for parameter in module.parameters():  # what starts as zero (sinks, biases, gates) must count as well
        parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = [torch.randint(3, small.vocab_size, (n,)) for n in LENGTHS]
    wanted = [module(input_ids=i[None], use_cache=False).logits[0] for i in ids]
    _transformers.use_paged_attention(adapt(module))
    view = _Recorder(small.num_hidden_layers)
    found = _chunked(module, ids, view)
    if not view.calls:
        return NO_INTERFACE
    if (reason := view.complaint()) is not None:
        return reason
    scale = max(float(w.abs().max()) for w in wanted)
    worst = max(float((w - f).abs().max()) for w, f in zip(wanted, found, strict=True))
    if not worst <= TOLERANCE * scale:
        return f"a small copy of it differs from its own attention by {worst / scale:.1e} of the largest logit"
    return None


def _chunked(module: Any, ids: list[Tensor], view: _Recorder) -> list[Tensor]:
    """The logits of both sequences, computed side by side in the steps of ``CHUNKS``."""
    out: list[list[Tensor]] = [[], []]
    done = [0, 0]
    for counts in CHUNKS:
        parts = [(s, slice(done[s], done[s] + n)) for s, n in enumerate(counts) if n]
        tokens = torch.cat([ids[s][span] for s, span in parts])
        positions = torch.cat([torch.arange(span.start, span.stop) for _, span in parts])
        view.parts = parts
        with attending(view):
            logits = module(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0]
        for s, piece in zip([s for s, _ in parts], logits.split([n for n in counts if n]), strict=True):
            out[s].append(piece)
        done = [d + n for d, n in zip(done, counts, strict=True)]
    return [torch.cat(pieces) for pieces in out]


class _Recorder:
    """A KV view of two sequences, written out plainly, that remembers how it was called."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.calls: list[int] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.parts: list[tuple[int, slice]] = []
        self._held: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        self.calls.append(layer)
        self.shapes.add((*q.shape[1:], *k.shape[1:], *v.shape[1:]))
        out, start = [], 0
        for seq, span in self.parts:
            chunk = slice(start, start + span.stop - span.start)
            start = chunk.stop
            old = self._held.get((layer, seq))
            keys = k[chunk] if old is None else torch.cat([old[0], k[chunk]])
            values = v[chunk] if old is None else torch.cat([old[1], v[chunk]])
            self._held[layer, seq] = keys, values
            out.append(_attend(q[chunk], keys, values, span, scale, window, soft_cap, sinks, alibi_slopes))
        return torch.cat(out)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        raise UnsupportedModelError("it asks for latent attention")

    def complaint(self) -> str | None:
        """What would not fit the pages, or None."""
        if sorted(self.calls) != sorted(list(range(self.num_layers)) * len(CHUNKS)):
            return "not every layer calls attention exactly once a pass"
        if len(self.shapes) > 1:
            return "its layers differ in the number or size of their attention heads"
        return None


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: slice,
    scale: float,
    window: int,
    soft_cap: float,
    sinks: Tensor | None,
    slopes: Tensor | None,
) -> Tensor:
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    rows, columns = torch.arange(span.start, span.stop)[:, None], torch.arange(k.shape[0])[None, :]
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (columns - rows)
    hidden = (columns > rows) | ((columns <= rows - window) if window else False)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, q.shape[0], 1)], -1)
    probs = scores.softmax(-1)[..., : k.shape[0]]
    return torch.einsum("hqk,khd->qhd", probs, v.repeat_interleave(group, 1))


def small_config(parsed: Any) -> dict[str, Any]:
    """The config with small sizes and a few layers; every feature stays as it is."""
    config: dict[str, Any] = parsed.to_dict()
    num_layers, num_heads = int(parsed.num_hidden_layers), int(parsed.num_attention_heads)
    layers = _layers(config, num_layers)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == num_layers > 1:
            config[key] = [value[i] for i in layers]
    for key, small in SMALL.items():
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and (value > small or key.endswith("token_id")):
            config[key] = small
    for key in ("num_key_value_heads", "num_kv_heads"):
        kv_heads = config.get(key)
        if isinstance(kv_heads, int) and not isinstance(kv_heads, bool):
            config[key] = 4 if kv_heads == num_heads else min(kv_heads, 2)
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if config.get(key) == num_layers:
            config[key] = len(layers)
    if config.get("qk_rope_head_dim"):  # MLA: some configs write the derived sizes down as well
        config |= {k: v for k, v in {"head_dim": 8, "qk_head_dim": 24}.items() if k in config}
    if "attention_types" in config:  # GPT-Neo writes its pattern down twice
        config["attention_types"] = [[[kind], 1] for kind in config["attention_layers"]]
    config.pop("quantization_config", None)
    return _small_rope(config)


def _layers(config: Mapping[str, Any], num_layers: int) -> list[int]:
    """Indices of layers that show every combination of the config's per-layer lists."""
    lists = [v for v in config.values() if isinstance(v, list) and len(v) == num_layers > 1]
    if not lists:
        return list(range(min(num_layers, MAX_LAYERS)))
    kinds: dict[str, int] = {}
    for i in range(num_layers):
        kinds.setdefault(repr([values[i] for values in lists]), i)
    chosen = set(list(kinds.values())[:MAX_LAYERS]) | {0, num_layers - 1}
    chosen |= set(list(range(num_layers))[: max(0, 4 - len(chosen))])
    return sorted(chosen)


def _small_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Scaling factors per frequency fit the small heads; only their first ones are kept."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: v[:ROTARY_PAIRS] if k.endswith("_factor") and isinstance(v, list) else cut(v)
                for k, v in value.items()
            }
        return value

    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(config.get(key), dict):
            config[key] = cut(config[key])
    return config


ROTARY_PAIRS = SMALL["head_dim"] // 2
_transformers.register_attention(attention, unused_mask)
