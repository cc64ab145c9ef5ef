"""What machine figures are of: processor, cores, memory, the flags that matter to a kernel; a name for its files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .without_amx import tiles_refused

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")
UNITS = {"amx_tile": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}  # the best first


def describe() -> dict[str, Any]:
    """``masked``, where there are any, are flags that the processor has and this process may not use."""
    from pagoda.budget import MachineProbe

    probe = MachineProbe()
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    read = {key.strip(): value.strip() for key, value in fields.items()}
    machine = {
        "cpu": probe.cpu_model(),
        "cpu_family_model": f"{read.get('cpu family', '?')}/{read.get('model', '?')}",
        "cores": probe.cpus(),
        "memory_gib": round(probe.mem_total() / 2**30),
        "flags": [flag for flag in FLAGS if flag in probe.cpu_flags()],
    }
    return without(machine, ["amx_tile"] if tiles_refused() else [])


def without(machine: dict[str, Any], masked: list[str]) -> dict[str, Any]:
    """The same machine, of which these flags were not used."""
    masked = [flag for flag in machine["flags"] if flag in masked]
    kept = [flag for flag in machine["flags"] if flag not in masked]
    return machine | {"flags": kept} | ({"masked": masked} if masked else {})


def name_of(machine: dict[str, Any]) -> str:
    """For files: ``amd-epyc-25-17``, ``intel-xeon-6-167-without-amx-tile``."""
    words = f"{machine['cpu']} {machine['cpu_family_model']}".lower()
    words = re.sub(r"\((r|tm)\)|processor", " ", words)
    words += "".join(f" without {flag}" for flag in machine.get("masked", ()))
    return "-".join(re.findall(r"[a-z0-9]+", words))


def strongest(machine: dict[str, Any]) -> str:
    """What multiplies fastest there, in words."""
    unit = next((words for flag, words in UNITS.items() if flag in machine["flags"]), "no AVX2")
    masked = ", ".join(UNITS.get(flag, flag) for flag in machine.get("masked", ()))
    return f"{unit}, {masked} masked" if masked else unit


def in_words(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']} (family/model {machine['cpu_family_model']}), {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {', '.join(machine['flags'])}"
        + "".join(f", {flag} masked" for flag in machine.get("masked", ()))
    )
