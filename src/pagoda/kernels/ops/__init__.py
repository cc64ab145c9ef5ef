"""The ops: one file each, with its signature, its plain torch reference, its cases and its tolerances."""

from ._table import LayerTable
from .activation import activation
from .add_sums import add_sums
from .attention import paged_attention
from .close_gaps import close_gaps
from .close_rows import close_rows
from .coded_attention import coded_attention
from .copy_pages import copy_pages
from .evict import evict
from .gated_activation import gated_activation
from .greedy import greedy
from .grouped_linear import grouped_linear
from .hash_scores import hash_scores
from .hash_slots import hash_slots
from .head_products import head_products
from .keep_best import keep_best
from .kv_compact import kv_compact
from .kv_write import kv_write
from .layer_norm import layer_norm
from .likeliest import likeliest
from .linear import linear
from .min_p_mask import min_p_mask
from .moe_dispatch import moe_dispatch
from .packed_embedding import packed_embedding
from .packed_linear import packed_linear
from .page_codes import page_codes
from .page_marks import page_marks
from .page_numbers import page_numbers
from .page_scores import page_scores
from .read_slots import read_slots
from .rms_norm import rms_norm
from .rotary import rotary
from .route import route
from .router_logits import router_logits
from .sigmoid_gate import sigmoid_gate
from .top_k_mask import top_k_mask
from .top_p_mask import top_p_mask
from .typical_mask import typical_mask
from .weigh_slots import weigh_slots
from .window_sums import window_sums

__all__ = [
    "LayerTable",
    "activation",
    "add_sums",
    "close_gaps",
    "close_rows",
    "coded_attention",
    "copy_pages",
    "evict",
    "gated_activation",
    "greedy",
    "grouped_linear",
    "hash_scores",
    "hash_slots",
    "head_products",
    "keep_best",
    "kv_compact",
    "kv_write",
    "layer_norm",
    "likeliest",
    "linear",
    "min_p_mask",
    "moe_dispatch",
    "packed_embedding",
    "packed_linear",
    "page_codes",
    "page_marks",
    "page_numbers",
    "page_scores",
    "paged_attention",
    "read_slots",
    "rms_norm",
    "rotary",
    "route",
    "router_logits",
    "sigmoid_gate",
    "top_k_mask",
    "top_p_mask",
    "typical_mask",
    "weigh_slots",
    "window_sums",
]
