"""Say before loading what fits a budget, how fast, and at what loss.

pagoda plan MODEL --memory 3GiB                                        the best plans
pagoda plan MODEL --memory 3GiB --prompt 4000 --concurrency 8 --pick 2 start the second
pagoda plan cluster --model M --trace FILE --slo-ttft 1               machines for traffic
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..core.errors import ConfigError
from ..core.units import format_bytes
from . import _options as opt
from . import _plan_device
from ._output import emit_json, print_table

if TYPE_CHECKING:
    from ..plan.plans import Plan, Spill

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class PlanOrCluster(TyperCommand):
    """``plan cluster …`` is a command of its own; whatever else comes first is a model (``./cluster`` a folder)."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args[:1] != ["cluster"]:
            return super().make_context(info_name, args, parent, **extra)
        from . import _plan_cluster

        command = typer.main.get_command(_plan_cluster.app)
        return command.make_context(f"{info_name} cluster", args[1:], parent, **extra)


@app.command(cls=PlanOrCluster)
def plan(
    model: opt.Model,
    memory: opt.Memory = None,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 1024,
    output: Annotated[int, typer.Option(help="Tokens of an answer.")] = 256,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 1,
    slo_ttft: Annotated[float | None, typer.Option(help="Most seconds to the first token.")] = None,
    slo_tpot: Annotated[float | None, typer.Option(help="Most seconds between two tokens.")] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Most nats a token that may be lost; 0 = exact.", min=0)
    ] = None,
    disk: Annotated[str | None, typer.Option(help="Also say what would lie on a disk of this size.")] = None,
    kv_offload_dir: Annotated[
        str | None, typer.Option(help="Folder on that disk, for KV that does not fit.", show_default="the cache folder")
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Kind of accelerator that placements are for.")] = None,
    machines: Annotated[Path | None, typer.Option(help="YAML file with more kinds, as plan/machines.yaml.")] = None,
    device_memory: Annotated[
        str | None, typer.Option(help="Bytes of that accelerator.", show_default="all that it has")
    ] = None,
    host_memory: Annotated[str | None, typer.Option(help="Budget of the host alone; --memory bounds it too.")] = None,
    pick: Annotated[int | None, typer.Option(help="Start pagoda serve with this plan.")] = None,
    json: opt.Json = False,
) -> None:
    """Say before loading what fits a budget, how fast, and at what loss.

    For traffic on several machines: pagoda plan cluster --help
    """
    if machine is not None or machines is not None or device_memory is not None:
        if kv_offload_dir is not None:
            raise ConfigError(
                f"kv_offload_dir is {kv_offload_dir!r}, but beside an accelerator no KV is offloaded so far"
            )
        asked = {"prompt": prompt, "output": output, "concurrency": concurrency, "slo_ttft": slo_ttft}
        placed = _plan_device.examine(
            model, memory, device_memory, host_memory, disk, machine, machines, max_loss=max_loss,
            **asked, slo_tpot=slo_tpot,
        )  # fmt: skip
        if pick is not None:
            serve(model, _plan_device.flags_of(placed["placements"], pick))
        emit_json(_plan_device.plain(placed)) if json else _plan_device.show(placed)
        return
    found = examine(
        model, memory, prompt=prompt, output=output, concurrency=concurrency, slo_ttft=slo_ttft, slo_tpot=slo_tpot,
        max_loss=max_loss, disk=disk, host_memory=host_memory, kv_offload_dir=kv_offload_dir,
    )  # fmt: skip
    if pick is not None:
        _start(model, found["plans"], pick)
    emit_json(_plain(found)) if json else _print(found)


def examine(
    model: str, memory: str | None, *, max_loss: float | None, disk: str | None, host_memory: str | None = None,
    kv_offload_dir: str | None = None, **demand: Any,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is shown; ``plans`` are ``plan.plans.Plan`` objects."""
    from ..budget import MachineProbe
    from ..budget.default import smaller_budget
    from ..core.units import parse_bytes
    from ..models.catalog import folder_of, read_config
    from ..plan.choice import longest_of
    from ..plan.demand import Demand
    from ..plan.far import Disk
    from ..plan.machine import load_machine
    from ..plan.plans import Planner
    from ..plan.prices import nearest_prices
    from ..plan.subject import Subject

    asked, probe = Demand(**demand), MachineProbe()
    subject = Subject.of(model, read_config(model), folder=folder_of(model), probe=probe)
    machine, machine_reason = load_machine(probe=probe)
    budget = smaller_budget(memory, host_memory, probe)
    prices = nearest_prices(model, subject.family, subject.shape.num_params)
    folder = _folder(kv_offload_dir, disk)
    room = None if disk is None else Disk(parse_bytes(disk, what="disk"), folder)
    planner = Planner(subject, machine, prices, asked, budget.total_bytes, room)
    placed = None if room is None else planner.placements(room.num_bytes, max_loss=max_loss)
    plans = planner.plans(max_loss=max_loss) if disk is None or planner.fits else []
    return {
        "model": model, "parameters": subject.shape.num_params, "dtype": subject.dtype,
        "budget_bytes": budget.total_bytes, "budget_reason": budget.reason, "machine": machine_reason,
        "read_bytes_per_second": machine.read_bytes_per_second, "read_paces": machine.read_paces,
        "prices": None if prices is None else prices.model,
        "priced_itself": prices is not None and prices.are_of(model, subject.shape.num_params),
        "exact_only": subject.distances.why_not(longest_of(asked)),
        "stored": str(subject.stored or ""), "plans": plans, "placements": placed,
    }  # fmt: skip


def _folder(kv_offload_dir: str | None, disk: str | None) -> str:
    """Where KV goes that does not fit: what was said, else where this machine's calibration is kept."""
    from ..plan.machine import calibration_file

    if kv_offload_dir is None:
        return str(calibration_file().parent)
    if disk is None:
        raise ConfigError(f"kv_offload_dir is {kv_offload_dir!r}, but no --disk says how many bytes")
    return kv_offload_dir


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    placed = None if found["placements"] is None else [spill.as_dict() for spill in found["placements"]]
    return found | {"plans": [plan.as_dict() for plan in found["plans"]], "placements": placed}


def _start(model: str, plans: list[Plan], number: int) -> None:
    if not plans:
        raise ConfigError(f"pick is {number}, but no plan fits this budget; give --memory more")
    if not 1 <= number <= len(plans):
        raise ConfigError(f"pick is {number}; this budget has plans 1 to {len(plans)}")
    flags = plans[number - 1].flags
    if "--kv-offload-dir" in flags:
        Path(flags[flags.index("--kv-offload-dir") + 1]).mkdir(parents=True, exist_ok=True)
    serve(model, flags)


def serve(model: str, flags: Sequence[str]) -> None:
    """This process becomes ``pagoda serve`` with these flags, which it says first."""
    command = ["-m", "pagoda", "serve", model, *flags]
    print(f"pagoda {' '.join(command[2:])}", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, *command])


def _print(found: dict[str, Any]) -> None:
    rows = [_row(number, plan) for number, plan in enumerate(found["plans"], 1)]
    columns = [
        "#", "weights", "KV", "policy", ">step", ">at a time", ">first token", ">per token", ">tokens/s", ">memory",
        ">loss",
    ]  # fmt: skip
    if rows:
        print_table(f"Plans for {found['model']} in {format_bytes(found['budget_bytes'])}", columns, rows)
        accounts = [
            [str(number), *(format_bytes(num) for num in plan.accounts.as_dict().values())]
            for number, plan in enumerate(found["plans"], 1)
        ]
        names = [f">{name}" for name in found["plans"][0].accounts.as_dict()]
        print_table("Memory by account", ["#", *names], accounts)
    if found["placements"]:
        print_table(
            "Placement: what would lie on the disk",
            ["weights", "KV", ">of weights", ">of KV", ">per token", "waits for", ">plan"],
            [[*_spilled(one), _number_of(one, found["plans"])] for one in found["placements"]],
        )
    for note in _notes(found):
        print(note)


def _row(number: int, plan: Plan) -> list[str]:
    choice = plan.choice
    weights = f"{choice.quantization}, streamed" if plan.read_bytes else choice.quantization
    slow, fast = (1000 * seconds for seconds in plan.tpot_paces or (0.0, 0.0))
    between = f" ({fast:.1f} to {slow:.1f})" if plan.tpot_paces else ""
    return [
        str(number), weights, choice.kv_cache_dtype, choice.kv, str(choice.max_num_batched_tokens),
        str(plan.running), f"{plan.ttft:.2f} s", f"{1000 * plan.tpot:.1f} ms{between}", f"{plan.tokens_per_second:.1f}",
        format_bytes(plan.accounts.total), f"{plan.loss:.3f}",
    ]  # fmt: skip


def _spilled(spill: Spill) -> list[str]:
    placed, choice = spill.placement, spill.choice
    disk = [f"{placed.share(item, 'disk'):.0%}" for item in ("weights", "kv")]
    times = f"{1000 * spill.seconds:.3g} ms", placed.waits_for["decode"]
    return [choice.quantization, choice.kv_cache_dtype, *disk, *times]


def _number_of(spill: Spill, plans: list[Plan]) -> str:
    """Of the plan that is started for it, the fastest; "" where others are better in everything."""
    wanted = spill.runs_as
    same = [
        (plan.tpot, number)
        for number, plan in enumerate(plans, 1)
        if replace(plan.choice, max_num_batched_tokens=wanted.max_num_batched_tokens) == wanted
    ]
    return str(min(same)[1]) if same else ""


def _notes(found: dict[str, Any]) -> list[str]:
    notes = [f"speed, and what a process holds (runtime): {found['machine']}", f"budget: {found['budget_reason']}"]
    if found["read_paces"]:
        slow, fast, usual = (one / 1e9 for one in (*found["read_paces"], found["read_bytes_per_second"]))
        notes.append(
            f"speed: this machine's memory changes between {slow:.0f} and {fast:.0f} GB/s; times are of the usual "
            f"{usual:.0f}, in brackets those of a token at either"
        )
    if found["prices"] is None:
        notes.append("loss: nothing was measured, so only exact plans are shown")
    else:
        kind = "measured on this model" if found["priced_itself"] else "an estimate, measured on"
        notes.append(f"loss: nats a token beside exact, {kind} {found['prices']}; of several methods, the sum")
    if found["stored"]:
        notes.append(f"weights: as they are stored, {found['stored']}; their own loss is not in the table")
    if read := max((plan.read_bytes for plan in found["plans"]), default=0):
        notes.append(f"streamed: weights that do not fit are read from disk at every step, up to {format_bytes(read)}")
    if spool := max((plan.spool_bytes for plan in found["plans"]), default=0):
        what = "streamed in another form than they are stored in"
        notes.append(f"{what}: packed once into a file, up to {format_bytes(spool)} (--spool-dir)")
    if far := [plan.far for plan in found["plans"] if plan.far is not None]:
        window, read = max(one.window_bytes for one in far), max(int(one.read_bytes) for one in far)
        notes.append(
            f"offload: KV on disk, windows of up to {format_bytes(window)} on it in memory (staging), up to "
            f"{format_bytes(read)} read a step; sooner where the system has spare memory to cache it"
        )
    if found["exact_only"]:
        notes.append(f"KV policies are left out: {found['exact_only']}")
    notes.append("start one: the same command with --pick N")
    return notes
