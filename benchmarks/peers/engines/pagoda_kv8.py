"""Pagoda with KV in 8 bits (``kv_cache_dtype="int8"``), which is what OpenVINO keeps by default."""

from __future__ import annotations

from . import pagoda

FORMS = pagoda.FORMS
KV_BITS = 8


class Engine(pagoda.Engine):
    KV_CACHE_DTYPE = "int8"
