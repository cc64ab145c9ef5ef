"""Look after a folder of kept prefixes (--kv-dir): list it, verify it, make it smaller, pin what it should keep.

pagoda cache ls DIR                how much is in it, and how old it is
pagoda cache verify DIR --drop     read every record; drop those that are wrong
pagoda cache gc DIR --disk 2GiB    drop what was used least recently, down to that size
pagoda cache pin DIR --for 72      keep what was used in the last hour for 72 hours; --for 0 unpins
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from ..core.units import format_bytes, parse_bytes
from . import _options as opt
from ._groups import group
from ._output import emit_json, print_table

if TYPE_CHECKING:
    from ..kv.tiers.disk import DiskTier

app = group()
Folder = Annotated[str, typer.Argument(help="The folder that --kv-dir named.", show_default=False)]
HOUR = 3600.0


@app.callback()
def cache() -> None:
    """Look after a folder of kept prefixes (--kv-dir): list it, verify it, make it smaller, pin what it should keep."""


@app.command()
def ls(folder: Folder, json: opt.Json = False) -> None:
    """How many pages of tokens are in it, how large they are, and when they were last used."""
    records = _open(folder).records()
    now = time.time()
    ages = [
        ("pinned", 0.0),
        ("the last hour", HOUR),
        ("the last day", 24 * HOUR),
        ("the last week", 7 * 24 * HOUR),
        ("earlier", 1e18),
    ]
    rows: list[dict[str, Any]] = [{"used": name, "records": 0, "bytes": 0} for name, _ in ages]
    for _, size, used_at in records:
        row = rows[next(at for at, (_, age) in enumerate(ages) if now - used_at < age or age > HOUR * 1e6)]
        row["records"] += 1
        row["bytes"] += size
    total = {"records": len(records), "bytes": sum(size for _, size, _ in records)}
    if json:
        emit_json({"folder": folder, **total, "by_last_use": rows})
        return
    table = [[row["used"], f"{row['records']:,}", format_bytes(row["bytes"])] for row in rows]
    table.append(["together", f"{total['records']:,}", format_bytes(total["bytes"])])
    print_table(f"Kept prefixes in {folder}", ["last used", ">pages of tokens", ">on disk"], table)


@app.command()
def verify(
    folder: Folder,
    drop: Annotated[bool, typer.Option("--drop", help="Remove what is wrong.")] = False,
    json: opt.Json = False,
) -> None:
    """Read every record and compare it with its checksum; exit code 1 if one is wrong (and stays)."""
    tier = _open(folder)
    num, wrong = len(tier.records()), tier.verify()
    dropped = tier.drop([path for path, _ in wrong]) if drop else 0
    found = {"records": num, "wrong": [{"file": str(path), "reason": why} for path, why in wrong], "dropped": dropped}
    if json:
        emit_json(found)
    else:
        for path, why in wrong:
            print(f"{path}: {why}")
        print(f"{num} records, {len(wrong)} wrong, {dropped} dropped")
    if len(wrong) > dropped:
        raise typer.Exit(1)


@app.command()
def gc(
    folder: Folder,
    disk: Annotated[str, typer.Option(help="Size that it may keep; 0 empties it.")] = "8GiB",
    older_than: Annotated[float | None, typer.Option(help="Also drop what was not used for so many hours.")] = None,
    json: opt.Json = False,
) -> None:
    """Drop what was used least recently, down to a size; forgotten temporary files go as well."""
    if older_than is not None and not older_than > 0:
        raise ConfigError(f"older-than is {older_than}; give hours above 0")
    tier = _open(folder)
    before = tier.used_bytes
    tier.budget_bytes, tier.ttl = parse_bytes(disk, what="disk"), None if older_than is None else older_than * HOUR
    num = tier.collect()
    found = {"dropped": num, "bytes_before": before, "bytes_after": tier.used_bytes}
    if json:
        emit_json(found)
    else:
        print(f"{num} records dropped: {format_bytes(before)} before, {format_bytes(tier.used_bytes)} now")


@app.command()
def pin(
    folder: Folder,
    for_: Annotated[float, typer.Option("--for", help="Hours that they stay before all others; 0 unpins.")] = 24.0,
    used_within: Annotated[float, typer.Option(help="Of what was used in so many hours.")] = 1.0,
    json: opt.Json = False,
) -> None:
    """Keep what was used lately (a day's system prompts, say): it leaves after everything else, and never by age."""
    for name, value, least in (("for", for_, 0.0), ("used-within", used_within, 1e-9)):
        if not least <= value <= 24 * 36500:
            raise ConfigError(f"{name} is {value:g}; give hours {'from 0' if least == 0 else 'above 0'}")
    tier, now = _open(folder), time.time()
    num = tier.repin(now + for_ * HOUR, least=now - used_within * HOUR if for_ else now)
    found = {"pinned" if for_ else "unpinned": num}
    if json:
        emit_json(found)
    else:
        print(f"{num} records {'pinned' if for_ else 'unpinned'}")


def _open(folder: str) -> DiskTier:
    from ..kv.tiers.disk import VERSION, DiskTier

    if not (Path(folder).expanduser() / VERSION).is_dir():
        raise ConfigError(f"{folder}: keeps no prefixes (it has no folder {VERSION}); give what --kv-dir named")
    return DiskTier(folder, 1 << 62)
