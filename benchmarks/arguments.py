"""What several benchmarks accept on the command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if number < 1:
        raise ArgumentTypeError(f"{text} is no number of things; accepted: whole numbers from 1 on")
    return number


def seconds(text: str) -> float:
    """A length of time, or another measure that is more than nothing."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text} is no length of time; accepted: numbers above 0")
    return number


def interpreter(text: str) -> str:
    """A Python that can be started."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f"{text} is no file; give the path of a Python, such as vllm/bin/python")
    return text


def file(text: str) -> Path:
    """One that is there."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f"{text} is no file; give one that --json has written")
    return Path(text)


def folder(text: str) -> Path:
    """One that is there."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is no folder; give one that a run has written")
    return Path(text)
