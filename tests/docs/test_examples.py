"""README and docs are run: Python blocks in order in one namespace per page, commands in blocks marked ``console``."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str, int]]:
    """``(flags, text, line)`` of every block of that language."""
    text = page.read_text(encoding="utf-8")
    found = [m for m in BLOCK.finditer(text) if m[1] == language]
    return [(m[2].strip(), m[3], text.count("\n", 0, m.start()) + 2) for m in found]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=ids)
def test_python_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "__example__"}
    for _, text, line in blocks(page, "python"):
        # Blank lines before the code make tracebacks point at the line of the page.
        exec(compile("\n" * (line - 1) + text, str(page), "exec", dont_inherit=True), namespace)
    assert capsys.readouterr().out


COMMANDS = [
    pytest.param(command.strip()[2:], int(flags.partition("=")[2] or 0), id=command.strip()[2:])
    for page in PAGES
    for flags, text, _ in blocks(page, "console")
    for command in text.splitlines()
    if command.startswith("$ ")
]


@pytest.mark.parametrize(("command", "code"), COMMANDS)
def test_commands_run(command: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    if "|" in command or "--memory" in command:  # a stated budget is that of a process with nothing else in it
        ours = f'"{sys.executable}" -m pagoda '
        shell = command.replace("pagoda ", ours, 1)
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {shell}"], capture_output=True, timeout=180, check=False
        )
        assert done.returncode == code, done.stderr
        return
    from pagoda.cli.main import main

    words = shlex.split(command)
    assert words.pop(0) == "pagoda"
    try:
        main(words)
        exited: object = 0
    except SystemExit as exit_:
        exited = exit_.code or 0
    out, err = capfd.readouterr()
    assert exited == code, err
    assert out if code == 0 else not out


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|cpp|hpp))`", text))
    assert len(named) > 30
    missing = [name for name in sorted(named) if not any((ROOT / base / name).exists() for base in ("src/pagoda", "."))]
    assert not missing


def test_the_drawing_is_valid_and_small() -> None:
    import xml.etree.ElementTree as ElementTree

    drawing = ROOT / "docs" / "img" / "pages.svg"
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")
    assert os.path.getsize(drawing) < 60_000
