"""Files in which a system describes itself: ``/proc``, ``/sys``. What is not there, or kept from us, is empty."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str:
    """The file's text, stripped; empty where the machine has no such file or keeps it from us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
