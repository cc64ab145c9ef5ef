"""The arrows of the design hold; and the test that says so would notice if they did not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .import_map import ARROWS, TORCH_FREE, imports, violations

PACKAGE = Path(__file__).parent.parent / "src" / "pagoda"


def test_arrows_point_down_only() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_benchmarks_run_without_the_tests() -> None:
    files = sorted((PACKAGE.parent.parent / "benchmarks").rglob("*.py"))
    assert files
    for path in files:
        found = {name for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node)}
        assert not {name for name in found if name.partition(".")[0] == "tests"}, path


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_every_room_is_on_the_map() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms <= set(ARROWS)


def test_no_arrow_makes_a_circle() -> None:
    rooms = {room: {target.partition(".")[0] for target in targets} for room, targets in ARROWS.items()}
    rooms = {room: targets - {"pagoda"} for room, targets in rooms.items() if room not in ("pagoda", "bench", "cli")}
    done: set[str] = set()
    while ready := {room for room, targets in rooms.items() if room not in done and targets <= done}:
        done |= ready
    assert done == set(rooms), f"these rooms import each other: {sorted(set(rooms) - done)}"


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A package that keeps to the map until a test adds a file."""
    package = tmp_path / "pagoda"
    for room in ("core", "kv", "kv/policies", "engine", "kernels"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from .engine import loop\n")
    (package / "core" / "units.py").write_text("import re\n")
    (package / "engine" / "loop.py").write_text("from ..kv import pages\nimport torch\n")
    (package / "kv" / "pages.py").write_text("import numpy\nfrom ..core.units import re\n")
    (package / "kv" / "policies" / "base.py").write_text("from ..pages import numpy\n")
    (package / "kv" / "policies" / "exact.py").write_text("from .base import numpy\nfrom . import base\n")
    return package


def test_a_package_that_keeps_to_the_map_passes(planted: Path) -> None:
    assert violations(planted) == []
    found = {(i.source, i.target) for i in imports(planted)}
    assert {("pagoda", "engine.loop"), ("engine.loop", "kv.pages"), ("kv.policies.exact", "kv.policies.base")} <= found


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "core/up.py",
            "\n\nfrom ..kv import pages",
            "pagoda/core/up.py:3: core.up imports kv.pages: arrows point down",
        ),
        ("kv/up.py", "def f():\n    from pagoda.engine.loop import torch", "kv/up.py:2: kv.up imports engine.loop"),
        ("kv/up.py", "import pagoda.engine", "kv/up.py:1: kv.up imports engine: arrows point down only: kv -> budget"),
        ("kv/up.py", "from .. import engine", "kv.up imports engine"),
        ("kv/up.py", "from pagoda import LLM", "kv.up imports pagoda"),
        ("kv/up.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..engine import loop", "up.py:3"),
        ("kv/prefix.py", "import torch", "kv.prefix imports torch: kv.prefix is a room without torch"),
        ("core/fast.py", "import torch.nn", "core.fast imports torch: torch lives in"),
        ("engine/fast.py", "import triton", "triton lives in kernels.triton"),
        ("engine/bar.py", "def f():\n    from rich.table import Table", "rich lives in cli"),
        ("engine/odd.py", "import lxml", "engine.odd imports lxml: this library has no home"),
        ("attic/box.py", "from ..core import units", "room attic is not on the map"),
        ("kv/policies/h2o.py", "from .exact import numpy", "plug-ins of kv.policies do not know each other"),
        ("kv/policies/h2o.py", "from pagoda.kv.policies import exact", "plug-ins of kv.policies"),
    ],
)
def test_a_planted_violation_is_named(planted: Path, file: str, text: str, message: str) -> None:
    (planted / file).parent.mkdir(exist_ok=True)
    (planted / file).write_text(text)
    found = "\n".join(violations(planted))
    assert message in found


def _loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after a fresh interpreter ran ``code``."""
    script = f"{code}\nimport sys; print('MODULES', *sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub"}


def test_importing_the_package_loads_next_to_nothing() -> None:
    loaded = _loaded_by("import pagoda; assert 'LLM' in dir(pagoda)")
    assert not loaded & (HEAVY | {"typer", "rich", "numpy"})


def test_help_loads_neither_torch_nor_rich() -> None:
    run = "from pagoda.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not _loaded_by(run) & (HEAVY | {"rich", "numpy"})


def test_rooms_without_torch_load_none() -> None:
    modules = sorted(
        {
            module
            for path in PACKAGE.rglob("*.py")
            for module in [".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")]
            if any(module == room or module.startswith(f"{room}.") for room in TORCH_FREE)
        }
    )
    assert len(modules) > 20
    loaded = _loaded_by("import importlib\n" + "\n".join(f"importlib.import_module('pagoda.{m}')" for m in modules))
    assert not loaded & {"torch", "transformers", "safetensors", "rich"}


def test_lazy_exports_are_what_they_say() -> None:
    import pagoda

    for name in pagoda.__all__:
        assert getattr(pagoda, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'LMM'; it has: AsyncLLM"):
        pagoda.LMM  # noqa: B018
