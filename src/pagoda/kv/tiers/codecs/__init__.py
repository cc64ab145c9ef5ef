"""One file per codec of kept pages; the file name is what ``kv_dir_codec`` and ``kv_host_codec`` take. No torch."""

from ....core.registry import Registry

PAGE_CODECS = Registry("pagoda.kv.tiers.codecs", "codec of kept pages", "CODEC")
