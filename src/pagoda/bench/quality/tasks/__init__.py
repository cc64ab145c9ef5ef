"""One file per quality task; each asks the same of any model, and scores what it said under teacher forcing."""

from ....core.registry import Registry

TASKS = Registry("pagoda.bench.quality.tasks", "quality task", "TASK")
