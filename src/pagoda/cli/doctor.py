"""Say what this machine offers, what is missing, and whether Pagoda works here."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from .. import __version__
from ..core.errors import ConfigError, PagodaError
from ..core.units import format_bytes
from . import _options as opt
from ._output import emit_json, print_table
from ._session import check

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

# What the C++ kernels can make use of, in the kernel's spelling (/proc/cpuinfo; the last three are Arm's).
INSTRUCTION_SETS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16",
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "jinja2", "xxhash")
OMP_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "PAGODA_KERNELS",
    "PAGODA_ISA",
    "PAGODA_KV_PRODUCTS",
    "PAGODA_EXTENSION",
    "PAGODA_PROFILE",
)


@app.command()
def doctor(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's rates first, for pagoda plan (a minute).")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="With --calibrate: measure this model's own step times (a minute).")
    ] = None,
    quantization: Annotated[str, typer.Option(help="Weight format of --model.")] = "auto",
    kv_cache_dtype: Annotated[str, typer.Option(help="KV format of --model.")] = "auto",
    json: opt.Json = False,
) -> None:
    """Say what this machine offers, what is missing, and whether Pagoda works here."""
    if model is not None and not calibrate:
        raise ConfigError(f"--model {model} is for --calibrate; give both, or neither")
    for option, value in (("--quantization", quantization), ("--kv-cache-dtype", kv_cache_dtype)):
        if model is None and value != "auto":
            raise ConfigError(
                f"{option} {value} is that of --calibrate --model NAME, whose steps are measured; name it"
            )
    if model is not None:  # before a minute is spent on the machine
        check(model, {"quantization": quantization, "kv_cache_dtype": kv_cache_dtype})
    if calibrate and model is None:
        _calibrate()
    elif model is not None:
        _calibrate_model(model, quantization, kv_cache_dtype)
    report = examine()
    report["findings"] = findings(report)
    report["works"] = not any(finding["level"] == "broken" for finding in report["findings"])
    emit_json(report) if json else _print(report)
    if not report["works"]:
        raise typer.Exit(1)


def _calibrate() -> None:
    """Measures, with a line on stderr for what comes next, and keeps the result in the user's cache folder."""
    from ..bench.machine import measure
    from ..plan.machine import save_machine

    machine = measure(lambda what: print(f"measuring {what}", file=sys.stderr, flush=True))
    print(f"kept in {save_machine(machine)}", file=sys.stderr)


def _calibrate_model(model: str, quantization: str, kv_cache_dtype: str) -> None:
    """The step times of one model, kept beside the machine's rates (which are measured first, if they never were)."""
    from ..bench.steps import calibrate_model
    from ..plan.machine import load_machine

    if not load_machine()[0].measured:
        _calibrate()
    told = lambda what: print(f"measuring {what}", file=sys.stderr, flush=True)  # noqa: E731
    steps, file = calibrate_model(model, quantization, kv_cache_dtype, told)
    print(f"{steps.num_steps} steps, within {steps.spread:.1%} (median), kept in {file}", file=sys.stderr)


def examine() -> dict[str, Any]:
    """Everything that is looked at, as plain data. Nothing here raises: what fails is part of the report."""
    return {
        "pagoda": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "memory": _memory(),
        "nodes": _nodes(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "torch": _torch(),
        "kernels": _kernels(),
        "models": _models(),
        "calibration": _calibration(),
        "environment": {name: os.environ[name] for name in OMP_VARIABLES if name in os.environ},
    }


def _cpu() -> dict[str, Any]:
    from ..budget import MachineProbe
    from ..core.nodes import cores_of

    probe, allowed = MachineProbe(), os.sched_getaffinity(0)
    flags = probe.cpu_flags()
    return {
        "model": probe.cpu_model() or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "usable": probe.cpus(),
        "threads_a_core": -(-len(allowed) // cores_of(allowed)),
        "features": [name for name in INSTRUCTION_SETS if name in flags],
    }


def _memory() -> dict[str, Any]:
    from ..budget import MachineProbe, default_budget

    probe = MachineProbe()
    try:
        budget = default_budget(None, probe)
        default: dict[str, Any] = {"bytes": budget.total_bytes, "reason": budget.reason}
    except PagodaError as error:
        default = {"bytes": 0, "reason": str(error)}
    return {
        "total_bytes": probe.mem_total(),
        "available_bytes": probe.mem_available(),
        "cgroup_limits": [
            {"path": g.path, "version": g.version, "limit_bytes": g.limit_bytes, "usage_bytes": g.usage_bytes}
            for g in probe.cgroups()
        ],
        "default_budget": default,
    }


def _nodes() -> dict[str, Any]:
    """The memory nodes, and where threads and pages go on them (`core.nodes`)."""
    from ..budget import MachineProbe
    from ..core.nodes import home_of, nodes_of

    probe, allowed = MachineProbe(), os.sched_getaffinity(0)
    found = probe.nodes()
    near, home = nodes_of(found, allowed), home_of(found, allowed, probe.cpus())
    placement, refused = "there is one", False
    if home is not None:
        placement = f"threads stay on node {home.number}"
    elif len(near) > 1:
        placement = f"pages on nodes {', '.join(str(node.number) for node in near)} in turn"
        refused = not _may_place([node.number for node in near])
    return {
        "nodes": [{"number": n.number, "cpus": len(n.cpus), "total_bytes": n.total_bytes} for n in found],
        "placement": placement,
        "refused": refused,
    }


def _may_place(numbers: list[int]) -> bool:
    """Whether the system lets this process say on which nodes pages lie."""
    try:
        from ..kernels.memory import may_spread
    except (ImportError, OSError):
        return True  # nothing works without torch, and that is said elsewhere
    return may_spread(numbers)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        return {"error": _first_line(error)}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"threads": torch.get_num_threads(), "cuda_devices": devices, "build": torch.__version__}


def _kernels() -> dict[str, Any]:
    try:
        from ..kernels.dispatch import available

        found = available()
    except (ImportError, OSError, ConfigError) as error:
        return {"ops": {}, "missing": {}, "error": _first_line(error)}
    return {"ops": found.ops, "missing": found.missing, "caches": _caches(), "instruction_set": _instruction_set()}


def _instruction_set() -> str | None:
    """What the C++ kernels are run with; None without them."""
    try:
        from ..kernels._extension import best_isa
    except ImportError:
        return None
    return best_isa()


def _caches() -> list[int]:
    """Bytes of the first and second data cache that tiles are cut by; none without the C++ kernels."""
    try:
        from ..kernels._extension import caches
    except ImportError:
        return []
    return list(caches())


def _models() -> dict[str, Any]:
    from .models import catalog

    found = catalog()
    return {
        "families": len(found["families"]),
        "found": [m["name"] for m in found["models"]],
        "problem": found["problem"],
    }


def _calibration() -> dict[str, Any]:
    from ..plan.machine import load_machine

    machine, reason = load_machine()
    return {
        "reason": reason,
        "measured": machine.measured,
        "read_bytes_per_second": machine.read_bytes_per_second,
        "read_paces": machine.read_paces,
        "disk_bytes_per_second": machine.disk_bytes_per_second,
    }


def findings(report: dict[str, Any]) -> list[dict[str, str]]:
    """What a person should know: ``broken`` (nothing runs), ``slow`` (works, but could be faster), ``note``."""
    found: list[dict[str, str]] = []

    def add(level: str, text: str) -> None:
        found.append({"level": level, "text": text})

    cpu, memory, kernels = report["cpu"], report["memory"], report["kernels"]
    if "error" in report["torch"]:
        add(
            "broken",
            f"torch cannot be imported ({report['torch']['error']}); make venv (or pip install -c constraints.txt .)",
        )
    elif "error" in kernels:
        add("broken", f"the kernels cannot be imported ({kernels['error']})")
    if memory["default_budget"]["bytes"] == 0:
        add("broken", memory["default_budget"]["reason"])
    if report["models"]["problem"]:
        add("broken", report["models"]["problem"])
    for provider, reason in kernels["missing"].items():
        add("slow", f"no {provider} kernels ({reason}): the reference kernels serve")
    has_tiles = {"amx_tile", "amx_bf16", "amx_int8"} <= set(cpu["features"])
    if has_tiles and kernels.get("instruction_set") not in (None, "amx"):
        add("slow", "this processor has AMX, but PAGODA_ISA or the system keeps it from the kernels")
    if "x86" in report["system"] and "avx2" not in cpu["features"]:
        add("slow", "this processor has no AVX2")
    threads = report["torch"].get("threads", 0)
    if threads > cpu["usable"] * cpu["threads_a_core"]:
        add("slow", f"torch uses {threads} threads on {cpu['usable']} usable CPUs; set OMP_NUM_THREADS={cpu['usable']}")
    if report["nodes"]["refused"]:
        add(
            "slow",
            f"the system forbids {report['nodes']['placement']} (mbind; containers need CAP_SYS_NICE), so all weights "
            "lie on one; allow it, or keep Pagoda beside one node: numactl --cpunodebind=0 pagoda …",
        )
    for group in memory["cgroup_limits"]:
        add("note", f"a cgroup limits memory to {format_bytes(group['limit_bytes'])} ({group['path']})")
    return found


def _print(report: dict[str, Any]) -> None:
    cpu, memory, torch = report["cpu"], report["memory"], report["torch"]
    budget = memory["default_budget"]
    rows = [
        ["pagoda", report["pagoda"]],
        ["python", f"{report['python']} ({sys.executable})"],
        ["system", report["system"]],
        ["processor", f"{cpu['model']}, {cpu['usable']} of {cpu['cores']} CPUs usable"],
        ["caches a core", " and ".join(map(format_bytes, report["kernels"].get("caches", []))) or "unknown"],
        ["memory nodes", _shown_nodes(report["nodes"])],
        ["instruction sets", " ".join(cpu["features"]) or "unknown"],
        ["kernels run with", report["kernels"].get("instruction_set") or "no C++ kernels"],
        ["memory", f"{format_bytes(memory['total_bytes'])}, {format_bytes(memory['available_bytes'])} available"],
        ["cgroup limit", ", ".join(format_bytes(g["limit_bytes"]) for g in memory["cgroup_limits"]) or "none"],
        ["default budget", f"{format_bytes(budget['bytes'])} ({budget['reason']})"],
        ["CUDA devices", ", ".join(torch.get("cuda_devices", [])) or "none"],
        ["torch threads", str(torch.get("threads", "-"))],
        ["libraries", ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["libraries"].items())],
        ["models", ", ".join(report["models"]["found"]) + f" (and {report['models']['families']} native families)"],
        ["rates", _rates(report["calibration"])],
        *([name, value] for name, value in report["environment"].items()),
    ]
    print_table("This machine", ["what", "found"], rows)
    ops = [[op, ", ".join(names)] for op, names in report["kernels"]["ops"].items()]
    print_table("Kernels (best first)", ["op", "implementations"], ops)
    for finding in report["findings"]:
        print(f"{finding['level']}: {finding['text']}")
    print("Pagoda works here." if report["works"] else "Pagoda does not work here; see 'broken' above.")


def _shown_nodes(found: dict[str, Any]) -> str:
    nodes = [f"{n['number']}: {n['cpus']} CPUs, {format_bytes(n['total_bytes'])}" for n in found["nodes"]]
    return f"{'; '.join(nodes)} ({found['placement']})" if nodes else "unknown"


def _rates(found: dict[str, Any]) -> str:
    if not found["measured"]:
        return str(found["reason"])
    read, disk = (format_bytes(int(found[f"{what}_bytes_per_second"])) for what in ("read", "disk"))
    between = " to ".join(format_bytes(int(pace)) for pace in found["read_paces"])
    return f"memory {read}/s{between and f' ({between})'}, disk {disk}/s ({found['reason']})"


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
