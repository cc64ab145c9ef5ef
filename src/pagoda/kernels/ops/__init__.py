"""The ops: one file each, with its signature, its plain torch reference, its cases and its tolerances."""

from .activation import activation
from .attention import LayerTable, paged_attention
from .copy_pages import copy_pages
from .gated_activation import gated_activation
from .kv_compact import kv_compact
from .kv_write import kv_write
from .layer_norm import layer_norm
from .linear import linear
from .rms_norm import rms_norm
from .rotary import rotary

__all__ = [
    "LayerTable",
    "activation",
    "copy_pages",
    "gated_activation",
    "kv_compact",
    "kv_write",
    "layer_norm",
    "linear",
    "paged_attention",
    "rms_norm",
    "rotary",
]
