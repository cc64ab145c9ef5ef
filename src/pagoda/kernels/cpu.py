"""The C++ bodies (``csrc/``) behind the ops' signatures: tensors become addresses in cpu_*.py, and nowhere else.

Importing registers them. Without the extension the import fails with the reason, which `dispatch.available` shows.
"""

from __future__ import annotations

from ._extension import best_isa, cpu_features, num_workers
from .cpu_attention import paged_attention
from .cpu_choice import page_marks, page_scores
from .cpu_coded_attention import coded_attention
from .cpu_heads import head_products
from .cpu_linear import linear
from .cpu_packed import grouped_linear, packed_linear
from .cpu_page_numbers import page_codes, page_numbers
from .cpu_pages import copy_pages, kv_compact, kv_write
from .cpu_routing import route, router_logits, sigmoid_gate
from .cpu_rows import activation, gated_activation, layer_norm, rms_norm, rotary
from .cpu_slots import add_sums, close_gaps, close_rows, keep_best

__all__ = [
    "activation", "add_sums", "best_isa", "close_gaps", "close_rows", "coded_attention", "copy_pages",
    "cpu_features", "gated_activation", "grouped_linear", "head_products", "keep_best", "kv_compact", "kv_write",
    "layer_norm", "linear", "num_workers", "packed_linear", "page_codes", "page_numbers", "page_marks", "page_scores",
    "paged_attention", "rms_norm", "rotary", "route", "router_logits", "sigmoid_gate",
]  # fmt: skip
