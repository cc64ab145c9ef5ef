"""Who may import whom, as data, and the reader that finds who does not keep to it.

Every ``import`` counts, wherever it stands: at the top, inside a function, under ``TYPE_CHECKING``. Moving an import
into a function makes a program start faster; it does not turn an arrow around.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Room -> rooms (or single modules) that it may import. Every room may import itself.
ARROWS: dict[str, set[str]] = {
    "core": set(),
    "budget": {"core"},
    "schedule": {"core", "budget"},
    "kernels": {"core"},
    "weights": {"core", "budget", "kernels"},
    "kv": {"core", "budget", "kernels"},
    "sampling": {"core", "kernels"},
    "models": {"core", "budget", "kernels", "weights", "kv.view", "kv.dense"},
    "plan": {
        "core", "budget", "schedule", "kv", "models.shape", "models.stream_plan", "models.footprint", "models.catalog",
        "models.config_json", "models.families", "models.gguf", "models.packed_rows", "models.sources", "models.spec",
        "models.stored", "weights.quantization", "weights.formats", "weights.header", "weights.panel_rows",
        "weights.reader", "weights.rows", "weights.gguf_parts", "weights.schemes", "sampling.params",
        "sampling.scratch", "kernels.preferred",
    },
    "speculative": {"core", "budget", "kernels", "kv", "models", "sampling"},
    "adapters": {"core", "budget", "kernels", "weights", "models"},
    "engine": {
        "core", "budget", "schedule", "kernels", "weights", "kv", "sampling", "models", "plan", "speculative",
        "adapters",
    },
    "tune": {"core", "budget", "kernels", "weights", "models", "adapters"},
    "recall": {"core", "budget", "kv"},
    "server": {"pagoda", "core", "budget", "kv", "sampling", "models", "plan", "engine", "recall"},
    "cluster": {"pagoda", "core", "budget", "schedule", "kv", "sampling", "models", "plan", "engine", "server"},
    "assets": set(),
}  # fmt: skip
ARROWS["bench"] = {"pagoda", *ARROWS}
ARROWS["cli"] = {"pagoda", *ARROWS}
ARROWS["pagoda"] = set(ARROWS)  # the package's own lazy exports

# Third-party library -> where it lives. What is not here has no home yet: give it one.
HOMES: dict[str, set[str]] = {
    "torch": {"kernels", "weights", "kv", "sampling", "models", "engine", "adapters", "speculative", "tune", "bench",
              "cli.doctor"},
    "numpy": {"budget", "kernels", "weights", "kv", "sampling", "models", "engine", "plan", "speculative", "bench"},
    "transformers": {"models._transformers"},
    "triton": {"kernels.triton"},
    "tokenizers": {"models"},
    "sentencepiece": {"models"},
    "safetensors": {"weights"},
    "huggingface_hub": {"models"},
    "jinja2": {"models"},
    "xxhash": {"kv"},
    "blake3": {"kv.tiers"},
    "zstandard": {"kv.tiers"},
    "highspy": {"plan.fleet", "plan.solver"},
    "yaml": {"plan.catalogue"},
    "prometheus_client": {"server"},
    "opentelemetry": {"server.traces"},
    "llguidance": {"sampling.grammar", "sampling.masks"},
    "typer": {"cli"},
    "rich": {"cli"},
    "fastapi": {"server"},
    "uvicorn": {"server"},
    "starlette": {"server"},
    "pydantic": {"server"},
    "uvloop": {"server"},
    "msgspec": {"server"},
    "matplotlib": {"bench"},
    "ray": {"cluster"},
}  # fmt: skip

# Decisions are plain Python: these import no torch, and nothing that does.
TORCH_FREE = (
    "core", "budget", "schedule", "plan", "kv.pages", "kv.table", "kv.prefix", "kv.audit", "kv.manager",
    "kv.room", "kv.live", "kv.evictions", "kv.compaction", "kv.stats", "kv.tiers",
    "kv.swap_cost", "kv.read_back", "kv.write_back",
    "sampling.params", "sampling.scratch", "sampling.structured", "sampling.grammar",
    "models.shape", "models.resolve", "models.catalog", "models.config_json", "models.stored", "models.stream_plan",
    "weights.rows", "weights.built_rows", "cli.main", "cli.run", "cli.chat", "cli.models", "cli.serve",
)  # fmt: skip
NEEDS_TORCH = {"torch", "transformers", "safetensors", "triton"}

# Folders whose plug-ins never import each other; ``base`` and files with ``_`` are their common furniture.
PLUGIN_ROOMS = ("kv.policies", "kv.codecs", "kv.tiers", "schedule.policies", "weights.formats",
                "server.parsers.tools", "server.parsers.reasoning")  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import statement: module ``source`` (without the leading ``pagoda.``) names ``target`` at a line."""

    source: str
    target: str
    file: Path
    line: int
    is_ours: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.source} imports {self.target}"


def violations(package: Path) -> list[str]:
    """Every import under ``package`` (the folder) that breaks the map, as ``file:line: who imports what: why``."""
    found = []
    for imported in imports(package):
        for rule in (_arrow, _home, _torch_free, _plugin):
            reason = rule(imported)
            if reason:
                found.append(f"{imported}: {reason}")
    return found


def imports(package: Path) -> Iterator[Import]:
    """Every import of every module, resolved to the module that it names."""
    files = sorted(package.rglob("*.py"))
    names = {file: _module_name(package, file) for file in files}
    known = set(names.values())
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = _from_targets(node, package.name, names[file], file.name == "__init__.py", known)
            else:
                continue
            for target in targets:
                head, _, rest = target.partition(".")
                ours = head == package.name
                name = (rest or "pagoda") if ours else head
                yield Import(names[file], name, file.relative_to(package.parent), node.lineno, ours)


def _module_name(package: Path, file: Path) -> str:
    """``kv.pages`` for ``pagoda/kv/pages.py``; ``pagoda`` for the files of the package itself."""
    parts = file.relative_to(package).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) if parts and parts != ("__main__",) else "pagoda"


def _from_targets(node: ast.ImportFrom, package: str, source: str, is_package: bool, known: set[str]) -> list[str]:
    """``from .. import kv`` and ``from ..kv import pages`` name modules where those exist, else the module before."""
    base = node.module or ""
    if node.level:
        here = [] if source == "pagoda" else source.split(".")
        up = node.level - 1 if is_package or source == "pagoda" else node.level
        base = ".".join([package, *here[: len(here) - up], *([node.module] if node.module else [])])
    if base.partition(".")[0] != package:
        return [base]
    inner = base.partition(".")[2]
    targets = []
    for alias in node.names:
        deeper = f"{inner}.{alias.name}" if inner else alias.name
        targets.append(f"{package}.{deeper}" if deeper in known else base)
    return targets


def _within(module: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _room(module: str) -> str:
    return module.partition(".")[0]


def _arrow(imported: Import) -> str | None:
    source, target = _room(imported.source), _room(imported.target)
    if not imported.is_ours or source == target:
        return None
    if source not in ARROWS or target not in ARROWS:
        return f"room {source if source not in ARROWS else target} is not on the map"
    if _within(imported.target, ARROWS[source]):
        return None
    return f"arrows point down only: {source} -> {', '.join(sorted(ARROWS[source])) or 'nothing'}"


def _home(imported: Import) -> str | None:
    if imported.is_ours or imported.target in sys.stdlib_module_names:
        return None
    if imported.target not in HOMES:
        return "this library has no home on the map"
    if _within(imported.source, HOMES[imported.target]):
        return None
    return f"{imported.target} lives in {', '.join(sorted(HOMES[imported.target]))}"


def _torch_free(imported: Import) -> str | None:
    if _within(imported.source, TORCH_FREE) and not imported.is_ours and imported.target in NEEDS_TORCH:
        return f"{imported.source} is a room without torch"
    return None


def _plugin(imported: Import) -> str | None:
    for room in PLUGIN_ROOMS:
        if not (imported.is_ours and _within(imported.source, (room,)) and _within(imported.target, (room,))):
            continue
        source, target = (m.removeprefix(room).strip(".").partition(".")[0] for m in (imported.source, imported.target))
        if source and target and source != target and target != "base" and not target.startswith("_"):
            return f"plug-ins of {room} do not know each other"
    return None
