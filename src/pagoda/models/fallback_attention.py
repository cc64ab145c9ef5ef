"""The attention function that transformers calls for a fallback model: it hands q, k and v to the step's KV view.

The whole ragged batch goes through a model as one packed row ``[1, T]``; the view knows where its sequences begin, so
the model needs no mask. The view of the step travels in a context variable: transformers passes a module's arguments
through many hands, and several models may run in several threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from pagoda.core.errors import UnsupportedModelError

from .layers.step import KVView

_VIEW: ContextVar[KVView] = ContextVar("pagoda_kv_view")


@contextmanager
def attending(view: KVView) -> Iterator[None]:
    """Attention of fallback models goes to ``view`` inside this ``with``, in this thread."""
    token = _VIEW.set(view)
    try:
        yield
    finally:
        _VIEW.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query ``[1, Hq, T, Dk]``, key and value ``[1, Hkv, T, D]`` -> ``[1, T, Hq, Dv]``; transformers' interface.

    Raises UnsupportedModelError for a mask or bias that a model makes by itself: it would be ignored.
    """
    view = _VIEW.get()
    if (attention_mask is not None or position_bias is not None) and not getattr(view, "takes_any_mask", False):
        made = "mask" if attention_mask is not None else "position bias"
        raise UnsupportedModelError(f"{type(module).__name__} makes an attention {made} of its own")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = attend_packed(
        int(module.layer_idx),  # type: ignore[arg-type]
        q,
        k,
        v,
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=sliding_window or 0,
        soft_cap=softcap or 0.0,
        sinks=s_aux,
    )
    return out[None], None


def attend_packed(layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """q ``[T, Hq, Dk]``, k ``[T, Hkv, Dk]``, v ``[T, Hkv, Dv]`` -> ``[T, Hq, Dv]``, in the view of this step."""
    return _VIEW.get().attend(layer, q.contiguous(), k.contiguous(), v.contiguous(), **options)
