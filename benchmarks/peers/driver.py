"""Who is measured when: engines loaded once for a model and kind of weights, then cell by cell in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ..probe import Prober
from . import engines, plan
from .checkpoints import FormError, make_form, model_folder
from .client import Client, EngineError, Unsupported
from .gate import Gate, GateLostError
from .measure import measured, warm_up
from .settings import SETTINGS, Setting
from .shapes import SHAPES, Shape
from .store import Repetition, Store
from .worker import Job


@dataclass(frozen=True)
class Options:
    """Everything is bounded: ``load_s``, ``generate_s`` by request, ``slice_s`` by stay behind the gate, ``total_s``.

    pythons: engine -> interpreter that has it. converters: checkpoint form -> interpreter with its tools.
    measure_gate, load_gate: see gate.py. reserve_bytes: memory that must stay available on the machine.
    clock: see trace.py. masked: see store.py.
    """

    pythons: dict[str, str]
    converters: dict[str, str]
    models: Path
    out: Path
    threads: int
    rounds: int = 3
    load_s: float = 300
    generate_s: float = 300
    slice_s: float = 100
    total_s: float = 36000
    reserve_bytes: int = 2 << 30
    measure_gate: str = ""
    load_gate: str = ""
    clock: str = "wall"
    masked: tuple[str, ...] = ()


@dataclass
class _Bench:
    """The loaded engines of one model and one kind of weights."""

    shape: Shape
    weights: str
    clients: dict[str, Client] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    warm: set[tuple[str, str]] = field(default_factory=set)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)  # of an engine's last repetition of a setting
    too_long: set[tuple[str, str]] = field(default_factory=set)

    def drop(self, name: str, reason: str) -> None:
        self.absent[name] = reason
        if name in self.clients:
            self.clients.pop(name).close()

    def close(self) -> None:
        for client in self.clients.values():
            client.close()


class Driver:
    """Runs cells and stores repetitions. ``say`` gets a line for each, ``progress`` the repetitions (done, in all)."""

    def __init__(
        self,
        options: Options,
        say: Callable[[str], None] = print,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._options, self._say, self._progress = options, say, progress
        self._store = Store(options.out)
        self._prober = Prober(options.threads, options.models)
        self._ends = time.monotonic() + options.total_s
        self._groups: Mapping[tuple[str, str], Sequence[str]] = {}
        self._total = 0

    def run(self, groups: Mapping[tuple[str, str], Sequence[str]]) -> None:
        """``{(shape, weights): settings}``: every cell that is not finished yet, few engines loaded at a time."""
        self._groups = groups
        self._total = self._all_owed()
        for (shape, weights), names in groups.items():
            bench = _Bench(SHAPES[shape], weights)
            try:
                for name in names:
                    self._cell(bench, SETTINGS[name])
            finally:
                bench.close()

    def _owed(self, shape: Shape, weights: str, setting: Setting) -> dict[str, int]:
        names = [name for name in self._options.pythons if weights in engines.load(name).FORMS]
        return plan.lacking(self._store, (shape.name, weights, setting.name), names, self._options.rounds)

    def _all_owed(self) -> int:
        return sum(
            sum(self._owed(SHAPES[shape], weights, SETTINGS[name]).values())
            for (shape, weights), names in self._groups.items()
            for name in names
        )

    # -- loading -----------------------------------------------------------------------------------------------------

    def _load(self, bench: _Bench, name: str) -> None:
        try:
            folder = self._folder(bench.shape)
            checkpoint = self._checkpoint(folder, name, bench.weights)
            self._check_memory(checkpoint)
            client = Client(
                name, self._options.pythons[name], self._options.out / "logs" / f"{name}.log", self._options.clock
            )
            bench.clients[name] = client
            with Gate(self._options.load_gate):
                started = time.perf_counter()
                job = _job(bench.shape, bench.weights, folder, checkpoint, self._options.threads)
                info = client.load(job, self._options.load_s)
            info["load_s"] = round(time.perf_counter() - started, 1)
            self._say(f"{bench.shape.name} {bench.weights} {name} {info['version']}: loaded in {info['load_s']} s")
        except (EngineError, FormError, GateLostError) as error:
            bench.drop(name, str(error))
            self._say(f"{bench.shape.name} {bench.weights} without {name}: {error}")

    def _folder(self, shape: Shape) -> Path:
        if (self._options.models / shape.name / "model.safetensors").exists():
            return self._options.models / shape.name
        with Gate(self._options.load_gate):
            return model_folder(self._options.models, shape)

    def _checkpoint(self, folder: Path, name: str, weights: str) -> Path:
        options, form = self._options, engines.load(name).FORMS[weights]
        python = options.converters.get(form or "", options.pythons[name])
        return make_form(python, folder, form, weights, seconds=3 * options.load_s, prefix=options.load_gate.split())

    def _check_memory(self, checkpoint: Path) -> None:
        from pagoda.budget import MachineProbe

        files = [checkpoint] if checkpoint.is_file() else [file for file in checkpoint.rglob("*") if file.is_file()]
        needed = 2 * sum(file.stat().st_size for file in files) + self._options.reserve_bytes
        available = MachineProbe().mem_available()
        if available < needed:
            raise EngineError(
                f"{available >> 20} MiB of memory are available and twice the checkpoint plus the reserve are "
                f"{needed >> 20} MiB; end other programs or measure fewer engines at once"
            )

    # -- one cell ----------------------------------------------------------------------------------------------------

    def _cell(self, bench: _Bench, setting: Setting) -> None:
        """Slices behind the gate until nothing is owed; what does not fit into the rest of one waits for the next."""
        while time.monotonic() < self._ends:
            owed = self._owed(bench.shape, bench.weights, setting)
            for name in owed:
                if name not in bench.clients and name not in bench.absent:
                    self._load(bench, name)
            ready = {name for name in bench.clients if (name, setting.name) not in bench.too_long}
            queue = plan.queue({name: count for name, count in owed.items() if name in ready}, self._options.rounds)
            if not queue:
                return
            with Gate(self._options.measure_gate) as gate:
                self._slice(bench, gate, setting, queue)

    def _slice(self, bench: _Bench, gate: Gate, setting: Setting, queue: list[tuple[int, str]]) -> None:
        until = time.monotonic() + self._options.slice_s
        for number, name in queue:
            expected = bench.seconds.get((name, setting.name)) or self._guess(setting)
            if name in bench.clients and time.monotonic() + expected <= until:
                self._repeat(bench, gate, setting, name, number)
            elif name in bench.clients and expected > 0.9 * self._options.slice_s:
                bench.too_long.add((name, setting.name))
                self._say(
                    f"{name} needs {expected:.0f} s for {setting.name}, longer than a slice; give --slice-seconds"
                )

    def _guess(self, setting: Setting) -> float:
        """Seconds of a first repetition: half a slice for 8192 tokens, which the slowest engines need."""
        return self._options.slice_s * min(0.9, setting.kv_tokens / 16384)

    def _repeat(self, bench: _Bench, gate: Gate, setting: Setting, name: str, number: int) -> None:
        client = bench.clients[name]
        base = Repetition(
            bench.shape.name,
            bench.weights,
            setting.name,
            name,
            number,
            _now(),
            info=client.info,
            clock=self._options.clock,
            masked=list(self._options.masked),
        )
        attempt = sum(r.cell == base.cell and r.engine == name for r in self._store)
        try:
            if (name, setting.name) not in bench.warm:
                warm_up(client, setting, self._options.generate_s)
                bench.warm.add((name, setting.name))
            started = time.monotonic()
            repetition = measured(base, client, setting, self._prober, attempt, self._options.generate_s)
            bench.seconds[name, setting.name] = time.monotonic() - started
            gate.check()
        except Unsupported as error:
            repetition = replace(base, failure=str(error))
        except EngineError as error:
            repetition = replace(base, failure=str(error))
            bench.drop(name, str(error))
        except GateLostError as error:
            self._say(f"{setting.name} {name}: {error}; not counted")
            return
        self._store.add(repetition)
        self._progress(self._total - self._all_owed(), self._total)
        self._say(_line(repetition))


def _job(shape: Shape, weights: str, folder: Path, checkpoint: Path, threads: int) -> Job:
    """Every engine is loaded for the largest of all settings, whichever are asked for: what it reserves is the same."""
    tokens = max(setting.kv_tokens for setting in SETTINGS.values())
    return Job(
        str(folder.resolve()), str(checkpoint.resolve()), weights, threads,
        max_len=max(setting.max_len for setting in SETTINGS.values()),
        max_batch=max(setting.batch for setting in SETTINGS.values()),
        kv_tokens=tokens, kv_bytes=shape.kv_bytes(tokens, 16),
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _line(repetition: Repetition) -> str:
    what = f"{repetition.shape} {repetition.weights} {repetition.setting} round {repetition.round} {repetition.engine}"
    if repetition.failure:
        return f"{what}: {repetition.failure}"
    rates = ", ".join(f"{metric} {rate:.1f}" for metric, rate in repetition.rates.items())
    note = "" if repetition.clean else f" (not alone: {repetition.foreign_cores} cores)"
    return f"{what}: {rates} tokens/s, {repetition.after[0]:.0f} GB/s{note}"
