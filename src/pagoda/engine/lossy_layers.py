"""Which layers of a model a policy may take KV from: attention that measures distance in slots would count wrongly
afterwards. ALiBi does so everywhere; a sliding window does in its own layer, where contexts are longer than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import RequestError
from ..kv.policies._layers import LossyLayers
from ..kv.policies._stack import PolicyStack
from ..kv.policies.base import Need
from ..models.load import Loaded

EXACT_WAYS = "accepted: exact, and codecs of single slots (int8, fp8, int4)"
WINDOW_KEYS = ("sliding_window", "window_size", "attention_chunk_size")
"""What configs of models without a family of ours call their windows."""


def on_this_model(policy: PolicyStack, loaded: Loaded, longest: int) -> PolicyStack:
    """The policy with the layers that it may take from, in contexts of ``longest`` tokens at most. Raises RequestError,
    with what can be done, where there are none.
    """
    if policy.keeps_all:
        return policy
    spelled = "+".join(policy.names)
    reason = why_not_lossy(loaded, longest)
    if reason is not None:
        raise RequestError(f"kv={spelled!r} cannot run on this model: {reason}")
    layers = lossy_layers(_windows(loaded), longest)
    if layers is not None and (why := _why_not_some(policy)):
        raise RequestError(
            f"kv={spelled!r} cannot run on this model, of whose layers {len(layers.index)} of {layers.num_layers} may "
            f"lose slots and the others have windows that count them: {why}; {EXACT_WAYS}"
        )
    return replace(policy, lossy=layers)


def why_not_lossy(loaded: Loaded, longest: int) -> str | None:
    """Why no layer of this model can lose slots, and what can be done; or None."""
    attention = _attention(loaded)
    text = loaded.config.get("text_config") or loaded.config
    alibi = any(getattr(attn, "alibi_slopes", ()) for attn in attention)
    if alibi or text.get("alibi") or text.get("model_type") == "bloom":
        return f"ALiBi measures distance in slots, and dropped slots would shift it; {EXACT_WAYS}"
    windows = _windows(loaded)
    layers = lossy_layers(windows, longest)
    if layers is None or layers.index:
        return None
    widest = max(windows)
    return (
        f"its attention windows count slots ({widest}), and dropped slots would shift them; {EXACT_WAYS}, or any "
        f"policy once max_model_len is {widest} or less, where no window ends (it is {longest})"
    )


def lossy_layers(windows: Sequence[int], longest: int) -> LossyLayers | None:
    """Layers whose ``windows`` (0: none) end nowhere within ``longest`` tokens; None: all do not."""
    index = tuple(layer for layer, window in enumerate(windows) if not 0 < window < longest)
    return None if len(index) == len(windows) else LossyLayers(index, len(windows))


def _why_not_some(policy: PolicyStack) -> str:
    """Why a policy needs all layers; "" where it does not."""
    for one in (policy.eviction, policy.selection):
        if one is not None and Need.CALIBRATION in one.needs:
            name = policy.names[0] if one is policy.eviction else policy.chooses_by
            return f"{name} is calibrated to all layers together"
    if policy.eviction is not None and policy.windowed is not None:
        return f"{policy.windowed.method} encodes pages that hold the same tokens in all layers"
    return ""


def _attention(loaded: Loaded) -> list[Any]:
    spec = getattr(loaded.model, "spec", None)
    return [] if spec is None else [block.attn for block in spec.blocks]


def _windows(loaded: Loaded) -> list[int]:
    """Of each layer; of a model without a family of ours all that its config names, for all layers alike."""
    attention = _attention(loaded)
    if attention:
        return [attn.window for attn in attention]
    text = loaded.config.get("text_config") or loaded.config
    stated = [window for key in WINDOW_KEYS if isinstance(window := text.get(key), int) and window > 0]
    return [min(stated, default=0)]
