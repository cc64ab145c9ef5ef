"""One digest of what the C++ extension is built from: the build writes it into the extension, an import in a source
checkout compares. Contents and names count, timestamps do not. CMake runs this file as a script: it imports no Pagoda.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

SUFFIXES = (".cpp", ".cxx", ".hpp")  # not what editors leave beside them
CHECKOUT = Path(__file__).resolve().parents[3]


def digest_of(root: Path) -> str | None:
    """Of the sources in a checkout; None where there are none, as in an installed wheel. 1.6 ms for 171 files."""
    csrc, build = root / "src" / "pagoda" / "kernels" / "csrc", root / "CMakeLists.txt"
    if not csrc.is_dir() or not build.is_file():
        return None
    digest = hashlib.sha256()
    for path in [build, *sorted(path for path in csrc.iterdir() if path.suffix in SUFFIXES)]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def why_stale(built_from: str | None, root: Path = CHECKOUT) -> str | None:
    """Why an extension of this digest does not belong to the checkout; None where it does, or there is none."""
    found = digest_of(root)
    if found is None or found == built_from:
        return None
    return (
        f"the C++ extension was built from other sources ({built_from or 'without a digest'}) than those in {root} "
        f"({found}); build it anew there: make venv (or pip install -e .)"
    )


if __name__ == "__main__":  # CHECKOUT TARGET
    root, target = map(Path, sys.argv[1:])
    declared = "extern const char* const pagoda_sources;\n"
    target.write_text(f'{declared}const char* const pagoda_sources = "{digest_of(root)}";\n')
