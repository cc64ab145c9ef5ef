"""Kept prefixes as options ask for them: ``kv_host``, ``kv_dir``, ``disk``, ``kv_ttl``, codecs of both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata

from ..budget.ledger import Lease, Ledger
from ..core.errors import ConfigError
from ..core.units import format_bytes, parse_bytes
from ..kernels.dispatch import load_providers
from ..kv.persist import Persistence
from ..kv.read_back import Tier
from ..kv.store import Store
from ..kv.tiers._form import ExactForm, Form
from ..kv.tiers.codecs._form import CodedForm
from ..kv.tiers.codecs.base import parse_page_codec
from ..kv.tiers.disk import DiskTier
from ..kv.tiers.host import HostTier
from .config import EngineConfig

DEFAULT_DISK_BYTES = 8 << 30


def open_tier(config: EngineConfig) -> Tier | None:
    """Where pages are kept outside of the pool; None where nobody asked for that.

    Raises ConfigError where the folder cannot be used, or its disk is smaller than what was asked for.
    """
    disk = None if config.kv_dir is None else _open_disk(config)
    if config.kv_host is None:
        return disk
    return HostTier(parse_bytes(config.kv_host, what="kv_host"), behind=disk)


def _open_disk(config: EngineConfig) -> DiskTier:
    assert config.kv_dir is not None
    tier = DiskTier(config.kv_dir, DEFAULT_DISK_BYTES, ttl=config.kv_ttl)
    if config.disk is None:
        tier.budget_bytes = min(DEFAULT_DISK_BYTES, max(1, _room(tier) // 2))
    else:
        tier.budget_bytes = _bytes_there(tier, config.disk)
    return tier


def _room(tier: DiskTier) -> int:
    return shutil.disk_usage(tier.folder).free + tier.used_bytes


def _bytes_there(tier: DiskTier, disk: str | int) -> int:
    asked, room = parse_bytes(disk, what="disk"), _room(tier)
    if asked > room:
        raise ConfigError(f"disk is {disk!r}, but {tier.folder} has room for {format_bytes(room)}; ask for less")
    return asked


def resized_disk(tier: Tier | None, disk: str | int) -> Callable[[], None]:
    """Gives the disk another budget when it is called; what is there beyond that leaves at once, the least recently
    used first. Raises ConfigError where there is no disk, or not so much of it.
    """
    found = tier.behind if isinstance(tier, HostTier) else tier
    if not isinstance(found, DiskTier):
        raise ConfigError(f"disk is {disk!r}, but no kv_dir says where; start with a folder")
    behind, num_bytes = found, _bytes_there(found, disk)
    if num_bytes == 0:
        raise ConfigError(f"disk is {disk!r}; give a size in bytes above 0, for example '10GiB'")

    def resize() -> None:
        behind.budget_bytes = num_bytes
        if behind.used_bytes > num_bytes:
            behind.collect()

    return resize


def open_persistence(tier: Tier, store: Store, ledger: Ledger, lease: Lease, config: EngineConfig) -> Persistence:
    """Pages are taken back only by the same version of the same kernels, whose numbers they are, and where a codec
    loses something only by who asks for the same: what is computed after such pages is not exact either.

    Raises ConfigError where a codec is none for pages of the engine's format.
    """
    tag = f"pagoda {metadata.version('pagoda-llm')}, {_kernels()}, {store.storage.device.type}"
    disk = tier.behind if isinstance(tier, HostTier) else tier
    if disk is not None:
        disk.form = _form("kv_dir_codec", config.kv_dir_codec, store)
        tag += "" if disk.form.text == "exact" else f", {disk.form.text}"
    if isinstance(tier, HostTier):
        tier.form = _form("kv_host_codec", config.kv_host_codec, store)
        tag += "" if tier.form.text == "exact" else f", {tier.form.text} in memory"
    return Persistence(tier, store.manager, store.storage, ledger, lease, tag=tag)


def _form(option: str, text: str, store: Store) -> Form:
    codec = parse_page_codec(text, store.fmt, option=option)
    if codec is None:
        return ExactForm(store.storage.pages.element_size(), store.fmt.block_bytes)
    return CodedForm(codec, store.fmt)


def _kernels() -> str:
    if load_providers()["cpu"] is not None:
        return "reference"
    from ..kernels.cpu import best_isa

    return best_isa()
