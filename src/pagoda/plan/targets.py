"""Where simulated traffic runs: a machine of the catalogue, or this one as it was calibrated."""

from __future__ import annotations

from dataclasses import dataclass

from ..budget.default import default_budget
from ..budget.probe import MachineProbe
from ..core.errors import ConfigError
from ..kv.codecs.base import with_dtype
from ..models.catalog import folder_of, read_config
from ..models.shape import ModelShape
from ..schedule.scheduler import Limits
from .catalogue import DTYPE, MachineType, as_one_head, model_config
from .choice import Choice
from .demand import Demand
from .machine import load_machine
from .plans import Planner
from .simulator.replica import Setting
from .steps import FittedSteps, step_model
from .subject import Subject

HERE = "here"


@dataclass(frozen=True, slots=True)
class Target:
    """One replica, and where its numbers come from, for people."""

    setting: Setting
    reason: str


def rented(
    model: str, machine: MachineType, limits: Limits, *, page_size: int = 16, blocks: int | None = None
) -> Target:
    """The model in 16 bit on a machine of the catalogue."""
    shape = ModelShape.from_config(model_config(model))
    room = machine.kv_blocks(shape, page_size) if blocks is None else blocks
    setting = Setting(as_one_head(shape.kv_format(page_size, DTYPE)), room, machine.cost(shape), limits=limits)
    return Target(setting, f"{machine.name}: {machine.flops_share:.0%} and {machine.bytes_share:.0%} of its peaks")


def here(
    model: str, limits: Limits, *, memory: str | None = None, quantization: str = "auto", kv_cache_dtype: str = "auto",
    page_size: int = 16, blocks: int | None = None,
) -> Target:  # fmt: skip
    """The model on this machine, with the step times that ``pagoda plan`` goes by."""
    probe = MachineProbe()
    subject = Subject.of(model, read_config(model), folder=folder_of(model), probe=probe)
    machine, reason = load_machine(probe=probe)
    steps = step_model(subject, quantization, kv_cache_dtype, machine)
    fmt = with_dtype(subject.shape.kv_format(page_size, subject.dtype), kv_cache_dtype)
    if blocks is None:
        demand = Demand(
            prompt=max(1, subject.shape.max_position - page_size - 1), output=1, concurrency=limits.max_num_seqs
        )
        choice = Choice(quantization, kv_cache_dtype, max_num_batched_tokens=limits.max_num_batched_tokens)
        blocks = Planner(subject, machine, None, demand, default_budget(memory, probe).total_bytes).kv_blocks(choice)
        if blocks < 1:
            raise ConfigError(f"{model} leaves no room for KV in this budget; raise --memory, or see pagoda plan")
    what = f"{steps.num_steps} measured steps" if isinstance(steps, FittedSteps) else f"rates, {reason}"
    return Target(Setting(as_one_head(fmt), blocks, steps, limits=limits), f"this machine: {what}")
