"""How a loaded model measures distance in slots, by its layers or, of a model without a family of ours, its config."""

from __future__ import annotations

from ..kv.policies._layers import Distances
from ..kv.policies._stack import PolicyStack
from ..models.config_json import text_config
from ..models.load import Loaded

WINDOW_KEYS = ("sliding_window", "window_size", "attention_chunk_size")
"""What configs of models without a family of ours call their windows."""


def on_this_model(policy: PolicyStack, loaded: Loaded, longest: int) -> PolicyStack:
    """See ``Distances.fit``."""
    return distances(loaded).fit(policy, longest)


def distances(loaded: Loaded) -> Distances:
    """Of each layer; where only the config tells, all that it names, for all layers alike."""
    spec = getattr(loaded.model, "spec", None)
    if spec is not None:
        return Distances(spec.windows, spec.alibi)
    text = text_config(loaded.config)
    stated = [window for key in WINDOW_KEYS if isinstance(window := text.get(key), int) and window > 0]
    alibi = bool(text.get("alibi")) or text.get("model_type") == "bloom"
    return Distances((min(stated, default=0),), alibi, by_layer=False)
