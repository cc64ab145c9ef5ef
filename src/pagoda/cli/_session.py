"""A model opened for one command: loaded with a progress bar, timed, interruptible between steps, always closed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.llm import LLM


@dataclass(slots=True)
class Session:
    """An open model. ``startup`` maps what was waited for to seconds, in order."""

    llm: LLM
    startup: dict[str, float] = field(default_factory=dict)


@contextmanager
def open_llm(model: str, options: dict[str, Any]) -> Iterator[Session]:
    """Loads the model and gives every byte back at the end, whatever happens in between."""
    before = process_age()
    start = time.perf_counter()
    check(model, options)
    from ..engine.llm import LLM

    imported = time.perf_counter()
    with progress_bar(model) as progress:
        llm = LLM(model, progress=progress, **options)
    if (placement := llm.stats()["model"]["weights"]) != "resident":
        print(f"weights: {placement}", file=sys.stderr, flush=True)
    phases = {name.replace("_", " "): s for name, s in llm.stats()["startup"].items() if name != "total"}
    try:
        yield Session(llm, {"python": before, "import": imported - start, **phases})
    finally:
        llm.close()


def check(model: str, options: dict[str, Any]) -> None:
    """Options that no model could take, or not this one, and a model that is not there, are refused in 0.5 s, not in
    the two that torch takes to load.

    Raises BudgetError, ConfigError or ModelError.
    """
    from ..budget import MachineProbe, default_budget
    from ..engine.config import EngineConfig, longest_of
    from ..models.config_json import text_config
    from ..models.families import is_native
    from ..models.shape import ModelShape

    asked = EngineConfig(model, **options)
    if asked.memory is not None:
        default_budget(asked.memory, MachineProbe())  # more than this machine has
    config = text_config(check_model(model))
    if asked.max_model_len != "auto" and is_native(config):
        longest_of(asked, ModelShape.from_config(config))


def check_model(model: str) -> dict[str, Any]:
    """The model's config. Raises ModelError for one that is not there, or whose files on this machine are not whole,
    without torch; of a hub id no weights are fetched yet.
    """
    from ..models.catalog import folder_of, read_config
    from ..weights.reader import Checkpoint

    config, folder = read_config(model), folder_of(model)
    if folder is not None and folder.is_dir():
        Checkpoint.open(folder)
    return config


class Interrupted:
    """Ctrl-C as a flag, looked at between steps; a second Ctrl-C interrupts at once.

    A KeyboardInterrupt in the middle of a forward pass would leave a step half done.
    """

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> Interrupted:
        self._old = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._old)

    def _note(self, signum: int, frame: Any) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True


@contextmanager
def progress_bar(model: str) -> Iterator[Callable[[int, int], None] | None]:
    """``progress(done_bytes, total_bytes)`` drawn on a terminal; None (no callback at all) elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(True), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(model, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def process_age() -> float:
    """Seconds since this process was started by its parent (interpreter start and imports so far)."""
    try:
        started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - started_ticks / 100)
