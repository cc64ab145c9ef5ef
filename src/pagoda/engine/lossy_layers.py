"""Which KV a policy may take from a model: attention that measures distance in slots would count wrongly afterwards."""

from __future__ import annotations

from typing import Any

from ..models.load import Loaded

EXACT_WAYS = "accepted: exact, and codecs of single slots (int8, fp8, int4)"
WINDOW_KEYS = ("sliding_window", "window_size", "attention_chunk_size")
"""What configs of models without a family of ours call their windows."""


def why_not_lossy(loaded: Loaded, longest: int) -> str | None:
    """Why the KV of this model, in contexts of ``longest`` tokens at most, cannot lose slots, and what can be done; or
    None. A window as wide as the longest context hides nothing, whatever is dropped.
    """
    spec = getattr(loaded.model, "spec", None)
    layers = [] if spec is None else [block.attn for block in spec.blocks]
    text = loaded.config.get("text_config") or loaded.config
    alibi = any(getattr(attn, "alibi_slopes", ()) for attn in layers)
    if alibi or text.get("alibi") or text.get("model_type") == "bloom":
        return f"ALiBi measures distance in slots, and dropped slots would shift it; {EXACT_WAYS}"
    windows = [attn.window for attn in layers] if layers else _stated(text)
    binding = [window for window in windows if 0 < window < longest]
    if binding:
        return (
            f"its attention windows count slots ({min(binding)}), and dropped slots would shift them; {EXACT_WAYS}, or "
            f"any policy once max_model_len is {min(binding)} or less, where no window ends (it is {longest})"
        )
    return None


def _stated(text: dict[str, Any]) -> list[int]:
    stated = (text.get(key) for key in WINDOW_KEYS)
    return [window for window in stated if isinstance(window, int)]
