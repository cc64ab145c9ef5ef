"""What an engine stands on: the budget that was stated, and the process as it was before anything was loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..budget import Ledger, MachineProbe, heap_bytes, lease_runtime
from ..budget.default import Budget, smaller_budget
from ..budget.ledger import Lease
from ..core.errors import BudgetError, ConfigError
from ..core.nodes import home_of
from ..core.units import format_bytes
from ..models.load import resolve_device
from .config import EngineConfig
from .device_probe import DeviceProbe


@dataclass(frozen=True, slots=True)
class Ground:
    """What an engine stands on, and what stays when it sleeps: the budget, and the process as it was before.

    is_shared   several engines stand on it: each counts on what it would have with no other awake, leases at once what
                it needs to answer one longest request, and takes more of the KV as it is free
    staying     bytes that a model (by its name) will not give back for another: of one that is pinned, all it needs
    tokenizers  bytes of the tokenizers that are leased, by the names of the models: those of sleeping ones too
    held        what each engine that is awake holds on malloc's heap beside its steps
    """

    ledger: Ledger
    probe: MachineProbe
    runtime: Lease | None
    heap_bytes: int
    is_on_cuda: bool
    is_shared: bool = False
    staying: dict[str, int] = field(default_factory=dict)
    tokenizers: dict[str, int] = field(default_factory=dict)
    held: dict[int, Callable[[], int]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: EngineConfig, *, is_shared: bool = False) -> Ground:
        """The budget that the configuration states, and the process measured. Raises ConfigError or BudgetError."""
        device = resolve_device(config.device)
        on_cuda = device.type == "cuda"
        probe = DeviceProbe(device) if on_cuda else MachineProbe()
        threads = config.num_threads or probe.cpus()
        torch.set_num_threads(threads)
        if not on_cuda:
            stay_beside_memory(threads, probe)
        ledger = _cuda_ledger(config, probe) if isinstance(probe, DeviceProbe) else _host_ledger(config, probe)
        if not on_cuda and not is_shared:
            ledger.gather()  # until the weights' needs are known: see ``models.placement.Filling``
        runtime = None if on_cuda else lease_runtime(ledger, probe)
        if on_cuda and is_shared:
            raise ConfigError("several models share a budget on the CPU only; start a server for each on this device")
        return cls(ledger, probe, runtime, heap_bytes(), on_cuda, is_shared)

    def room(self, model: str, own_bytes: int) -> int:
        """What an engine that has leased ``own_bytes`` may count on having in all beside them."""
        if not self.is_shared:
            return self.ledger.free_bytes
        assert self.runtime is not None
        others = sum(num for name, num in self.staying.items() if name != model)
        stays = self.runtime.num_bytes + self.ledger.leased_by("server") + others
        return self.ledger.total_bytes - stays - own_bytes

    def new_tokenizer_bytes(self, model: str) -> int:
        """What a model that is being loaded has leased for its tokenizer, beside those that were there before."""
        others = sum(num for name, num in self.tokenizers.items() if name != model)
        return self.ledger.leased_by("tokenizer") - others

    def step_heap_bytes(self) -> int:
        """What malloc took for steps, shared out among the engines that are awake: all since the runtime was measured
        less what they say to hold otherwise.
        """
        held = [count() for count in list(self.held.values())]
        return max(0, heap_bytes() - self.heap_bytes - sum(held)) // max(1, len(held))

    def check_free(self, more_bytes: int) -> None:
        """Raises BudgetError if a device has not that much free any more. A host's memory is the kernel's to judge."""
        if isinstance(self.probe, DeviceProbe) and more_bytes > self.probe.free():
            raise BudgetError(
                f"{format_bytes(more_bytes)} more are asked for, but the device has {format_bytes(self.probe.free())} "
                "free; ask for less"
            )


def stay_beside_memory(num_threads: int, probe: MachineProbe) -> None:
    """Where so many threads fit beside one of several memory nodes, this thread and those that it starts from now on
    (all of an engine's) stay there, and what they touch first lies there. For good: pages would not follow them back.
    """
    allowed = os.sched_getaffinity(0)
    home = home_of(probe.nodes(), allowed, num_threads)
    if home is not None:
        os.sched_setaffinity(0, home.cpus & allowed)


def _host_ledger(config: EngineConfig, probe: MachineProbe) -> Ledger:
    budget = stated_budget(config, probe)
    return Ledger(budget.total_bytes, reason=budget.reason)


def stated_budget(config: EngineConfig, probe: MachineProbe) -> Budget:
    """What the configuration says about the place where the engine runs. Raises ConfigError or BudgetError."""
    if isinstance(probe, DeviceProbe):
        if config.host_memory is not None:
            raise ConfigError(
                f"host_memory is {config.host_memory!r}, but this engine keeps everything on its device, and bounds "
                "that alone; say memory or device_memory"
            )
        return smaller_budget(config.memory, config.device_memory, probe, what="device_memory")
    if config.device_memory is not None:
        raise ConfigError(
            f"device_memory is {config.device_memory!r}, but this engine runs on the CPU; say memory or host_memory"
        )
    return smaller_budget(config.memory, config.host_memory, probe)


def _cuda_ledger(config: EngineConfig, probe: DeviceProbe) -> Ledger:
    """Weights, pages and steps live on the device, so the budget is the device's: what is free there, less a margin."""
    budget, free = stated_budget(config, probe), probe.free()
    if budget.total_bytes > free:
        raise BudgetError(
            f"memory ({budget.reason}) is {format_bytes(budget.total_bytes)}, but the device has {format_bytes(free)} "
            "free; ask for less, or use device='cpu'"
        )
    return Ledger(budget.total_bytes, reason=budget.reason)
