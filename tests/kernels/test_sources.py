"""An extension is known by the sources that it was built from, and one of others is refused in a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagoda.kernels.sources import CHECKOUT, digest_of, why_stale


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    csrc = tmp_path / "src" / "pagoda" / "kernels" / "csrc"
    csrc.mkdir(parents=True)
    (csrc / "a.cpp").write_text("int a;\n")
    (csrc / "a.hpp").write_text("extern int a;\n")
    (tmp_path / "CMakeLists.txt").write_text("project(pagoda)\n")
    return tmp_path


def test_contents_and_names_count_and_nothing_else_does(checkout: Path) -> None:
    csrc = checkout / "src" / "pagoda" / "kernels" / "csrc"
    first = digest_of(checkout)
    os.utime(csrc / "a.cpp", (1, 1))
    (csrc / ".a.cpp.swp").write_text("an editor's")
    assert digest_of(checkout) == first
    seen = {first}
    for change in (
        lambda: (csrc / "a.cpp").write_text("int b;\n"),
        lambda: (csrc / "a.hpp").rename(csrc / "b.hpp"),
        lambda: (csrc / "c.cpp").write_text(""),
        lambda: (checkout / "CMakeLists.txt").write_text("project(other)\n"),
    ):
        change()
        assert digest_of(checkout) not in seen
        seen.add(digest_of(checkout))


def test_what_is_installed_without_sources_is_not_asked(tmp_path: Path) -> None:
    assert digest_of(tmp_path) is None
    assert why_stale("any", tmp_path) is None
    assert why_stale(None, tmp_path) is None


def test_a_stale_extension_is_told_by_name_with_what_to_do(checkout: Path) -> None:
    assert why_stale(digest_of(checkout), checkout) is None
    for older in ("0123456789abcdef", None):
        said = why_stale(older, checkout) or ""
        assert older is None or older in said
        assert str(checkout) in said
        assert "make venv" in said
        assert "\n" not in said


def test_the_build_says_what_it_was_made_from() -> None:
    extension = pytest.importorskip(
        "pagoda.kernels._extension", reason="the extension is not built", exc_type=ImportError
    )
    if os.environ.get(extension.PATH):
        pytest.skip("another build was asked for, which may be of other sources")
    assert extension._cpu.sources == (digest_of(CHECKOUT) or extension._cpu.sources)
    assert len(extension._cpu.sources) == 16


REFUSED = """
from pagoda.core.errors import ConfigError
from pagoda.kernels import sources
sources.digest_of = lambda root: "of changed ones"
from pagoda.kernels.dispatch import available
for attempt in range(2):
    try:
        available()
    except ConfigError as error:
        print(error)
"""


def test_the_engine_does_not_run_without_saying_so() -> None:
    """Nor do the reference kernels serve instead, ten times slower and silent."""
    pytest.importorskip("pagoda.kernels._extension", reason="the extension is not built", exc_type=ImportError)
    environment = {name: value for name, value in os.environ.items() if name != "PAGODA_EXTENSION"}
    run = subprocess.run(
        [sys.executable, "-c", REFUSED], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.count("build it anew there: make venv") == 2
