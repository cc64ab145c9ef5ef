"""Look at a model once for the KV policies that need it.

pagoda calibrate duo_attention lantern     writes kv-calibration/duo_attention.json beside the model
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ..core.errors import ConfigError
from . import _options as opt
from ._output import emit_json

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def calibrate(
    method: Annotated[str, typer.Argument(help="duo_attention, razor_attention or compresskv.")],
    model: Annotated[str, typer.Argument(help="lantern, a folder, or a Hugging Face id.")],
    length: Annotated[int, typer.Option(help="Tokens of a synthetic text.")] = 512,
    json: opt.Json = False,
) -> None:
    """Look at a model once for the KV policies that need it."""
    from ..bench.calibration import CALIBRATORS
    from ..bench.quality.tasks.base import World
    from ..engine.calibrations import Calibrations
    from ..engine.eviction import why_not_lossy
    from ..kernels.dispatch import restricted
    from ..models.load import load_model

    name = method.replace("-", "_")
    run = CALIBRATORS.get(name)
    assert callable(run)
    if length < 128:
        raise ConfigError(f"length is {length}; give 128 tokens or more")
    with restricted("reference"):  # gradients pass through plain torch only
        loaded = load_model(model, dtype="float32")
        reason = why_not_lossy(loaded)
        if reason is not None:
            raise ConfigError(f"{name} cannot run on this model: {reason}")
        started = time.perf_counter()
        longest = min(length, loaded.shape.max_position)
        found, notes = run(loaded.model, World.make(loaded.tokenizer, longest), loaded.shape)
    path = Calibrations(loaded.path).save(name, found, {"length": longest, **notes})
    loaded.close()
    seconds = time.perf_counter() - started
    if json:
        emit_json({"method": name, "path": str(path), "seconds": seconds, **notes})
    else:
        print(f"{path} ({seconds:.1f} s)")
