"""One file per KV codec; the file name is the name that ``kv_cache_dtype`` takes."""

from ...core.registry import Registry

CODECS = Registry("pagoda.kv.codecs", "KV codec", "CODEC")
