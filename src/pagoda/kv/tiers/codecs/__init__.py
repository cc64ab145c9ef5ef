"""One file per codec of pages on disk; the file name is the name that ``kv_dir_codec`` takes. No torch."""

from ....core.registry import Registry

PAGE_CODECS = Registry("pagoda.kv.tiers.codecs", "codec of pages on disk", "CODEC")
