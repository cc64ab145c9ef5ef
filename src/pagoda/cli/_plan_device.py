"""``pagoda plan --machine KIND``: where weights, KV and activations lie, over an accelerator, its host and a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.units import format_bytes
from ._output import print_table

if TYPE_CHECKING:
    from ..plan.placing import Placed

ITEMS = ("weights", "experts", "head", "kv", "activations")


def examine(
    model: str, memory: str | None, device_memory: str | None, host_memory: str | None, disk: str | None,
    machine: str | None, machines: Path | None, *, max_loss: float | None, **demand: Any,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is shown; ``placements`` are ``plan.placing.Placed`` objects."""
    from ..budget import MachineProbe
    from ..core.units import parse_bytes
    from ..models.catalog import folder_of, read_config
    from ..plan.catalogue import pick_machine
    from ..plan.choice import longest_of
    from ..plan.demand import Demand
    from ..plan.machine import load_machine
    from ..plan.placing import Budgets, Placer
    from ..plan.prices import nearest_prices
    from ..plan.subject import Subject

    if machine is None:
        said = f"device_memory is {device_memory!r}" if machines is None else f"machines is {str(machines)!r}"
        raise ConfigError(f"{said}, but no --machine says which accelerator; {_known(machines)}")
    kind, asked, probe = pick_machine(machine, machines), Demand(**demand), MachineProbe()
    most = None if memory is None else parse_bytes(memory, what="memory")
    budgets = Budgets(
        _bounded(
            kind.memory_bytes if device_memory is None else parse_bytes(device_memory, what="device_memory"), most
        ),
        _bounded(_host_bytes(host_memory, probe), most),
        0 if disk is None else parse_bytes(disk, what="disk"),
    )
    if budgets.device > kind.memory_bytes:
        raise ConfigError(
            f"device_memory is {device_memory!r}, but {machine} has {format_bytes(kind.memory_bytes)}; ask for less"
        )
    subject = Subject.of(model, read_config(model), folder=folder_of(model), probe=probe)
    host, host_reason = load_machine(probe=probe)
    prices = nearest_prices(subject.name, subject.family, subject.shape.num_params)
    placer = Placer(subject, kind, host, prices, asked, budgets)
    return {
        "model": model, "parameters": subject.shape.num_params, "machine": machine, "host": host_reason,
        "device_bytes": budgets.device, "host_bytes": budgets.host, "disk_bytes": budgets.disk,
        "prices": None if prices is None else prices.model, "exact_only": subject.distances.why_not(longest_of(asked)),
        "peaks": f"{kind.flops_share:.0%} and {kind.bytes_share:.0%} of its peaks, {kind.host_gigabytes_per_second:g} "
        "GB/s to its host", "placements": placer.placements(max_loss=max_loss),
    }  # fmt: skip


def _known(machines: Path | None) -> str:
    """The kinds that can be named."""
    from ..plan.catalogue import machine_types

    return f"known: {', '.join(machine_types(machines))}; more with --machines FILE"


def _host_bytes(host_memory: str | None, probe: Any) -> int:
    """What was said of the host that the accelerator stands in; else what this machine would have by itself."""
    from ..budget import default_budget
    from ..core.units import parse_bytes

    return (
        default_budget(None, probe).total_bytes if host_memory is None else parse_bytes(host_memory, what="host_memory")
    )


def _bounded(num_bytes: int, most: int | None) -> int:
    return num_bytes if most is None else min(num_bytes, most)


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """For programs."""
    return dict(found) | {"placements": [placed.as_dict() for placed in found["placements"]]}


def flags_of(placements: Sequence[Placed], number: int) -> tuple[str, ...]:
    """Of ``pagoda serve``, for that placement. Raises ConfigError, saying why, for one that the engine cannot run."""
    if not 1 <= number <= len(placements):
        raise ConfigError(f"pick is {number}; there are placements 1 to {len(placements)}")
    picked = placements[number - 1]
    if picked.why_not:
        raise ConfigError(f"placement {number} cannot be started: {picked.why_not}; pick one that lies on the device")
    return picked.flags


def show(found: Mapping[str, Any]) -> None:
    """For people."""
    placed: list[Placed] = found["placements"]
    room = (
        f"{format_bytes(found['device_bytes'])} of {found['machine']}, {format_bytes(found['host_bytes'])} of its host"
    )
    room += f", {format_bytes(found['disk_bytes'])} of disk" if found["disk_bytes"] else ""
    columns = [
        "#", "weights", "KV", "policy", ">at a time", ">prompts", ">per token", ">tokens/s", "waits for", ">loss",
        "starts",
    ]  # fmt: skip
    print_table(f"Placements of {found['model']} over {room}", columns, [_row(n, p) for n, p in enumerate(placed, 1)])
    names = [name for name in ITEMS if any(name in one.num_bytes for one in placed)]
    print_table("Where they lie: device / host / disk, %", ["#", *names], [
        [str(number), *(_shares(one, name) for name in names)] for number, one in enumerate(placed, 1)
    ])  # fmt: skip
    for note in _notes(found, placed):
        print(note)


def _row(number: int, placed: Placed) -> list[str]:
    choice, block = placed.choice, placed.block
    return [
        str(number), choice.quantization, choice.kv_cache_dtype, choice.kv,
        f"{block.batches} x {block.batch}" if block.batches > 1 else str(block.batch),
        f"{placed.prompt_seconds:.3g} s", f"{1000 * placed.tpot:.3g} ms", f"{placed.tokens_per_second:.3g}",
        placed.placement.waits_for["decode"], f"{placed.loss:.3f}", "no" if placed.why_not else "yes",
    ]  # fmt: skip


def _shares(placed: Placed, name: str) -> str:
    if name not in placed.num_bytes:
        return ""
    text = "/".join(f"{100 * share:.0f}" for share in placed.placement.shares[name].values())
    there = sum(placed.placement.used_there["decode"].get(name, {}).values())
    return f"{text} ({100 * there:.0f} used there)" if there > 0.005 else text


def _notes(found: Mapping[str, Any], placed: Sequence[Placed]) -> list[str]:
    notes = [f"{found['machine']}: {found['peaks']}; host and disk: {found['host']}"]
    if any(one.block.batches > 1 for one in placed):
        notes.append("2 x 4: two batches of four take turns in every layer, whose weights come once for both")
    if any(any(one.placement.used_there["decode"].values()) for one in placed):
        notes.append("used there: by the host's own processor, instead of being brought to the device")
    if found["prices"] is not None:
        notes.append(f"loss: nats a token beside exact, measured on {found['prices']}; of several methods, the sum")
    blocked = [number for number, one in enumerate(placed, 1) if one.why_not]
    if blocked:
        notes.append(f"starts: {placed[blocked[0] - 1].why_not} (placement {blocked[0]})")
    if len(blocked) < len(placed):
        notes.append("times are what the device could: on a GPU the engine's ops are plain torch so far, and slower")
        notes.append("start one on such a device: the same command with --pick N")
    return notes
