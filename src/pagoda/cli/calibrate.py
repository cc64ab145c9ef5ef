"""Look at a model once for the KV policies, or teach the scheduling policies, that need it.

pagoda calibrate duo_attention lantern              writes kv-calibration/duo_attention.json beside the model
pagoda calibrate locret lantern                     trains its heads: kv-calibration/locret.safetensors
pagoda calibrate all lantern                        every KV policy that needs it
pagoda calibrate trail lantern --prompts FILE       writes schedule-calibration/trail.json beside the model
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from . import _options as opt
from ._output import emit_json

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def calibrate(
    method: Annotated[
        str, typer.Argument(help="duo_attention, locret, … or all KV policies that need it; learning_to_rank, trail.")
    ],
    model: Annotated[str, typer.Argument(help="lantern, a folder, or a Hugging Face id.")],
    length: Annotated[int, typer.Option(help="KV policies: tokens of a text.")] = 512,
    text: Annotated[
        Path | None, typer.Option(help="KV policies: text file to draw passages from.", show_default="made up")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Scheduling policies: what the model is asked, JSON lines or a text a line.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Scheduling policies: at most so many of the prompts.", min=20)] = 400,
    max_tokens: Annotated[int, typer.Option(help="Scheduling policies: answers are cut there.", min=2)] = 512,
    chat: Annotated[bool, typer.Option(help="Scheduling policies: ask through the chat template.")] = False,
    json: opt.Json = False,
) -> None:
    """Look at a model once for the KV policies, or teach the scheduling policies, that need it."""
    name, started = method.replace("-", "_"), time.perf_counter()
    if _is_scheduling(name):
        if prompts is None:
            raise ConfigError(f"{name} learns from the model's answers; give --prompts FILE")
        if text is not None:
            raise ConfigError(f"{name} learns from prompts; leave --text out")
        path, notes = _schedule(name, model, prompts, requests, max_tokens, chat)
    elif prompts is not None:
        raise ConfigError(f"{name} reads no prompts; leave --prompts out")
    elif name == "all":
        _every(model, length, text, json)
        return
    else:
        path, notes = _kv(name, model, length, text)
    _say(name, path, notes, time.perf_counter() - started, json)


def _every(model: str, length: int, text: Path | None, json: bool) -> None:
    """One method after the other."""
    from ..bench.calibration import CALIBRATORS

    for name in CALIBRATORS.names():
        started = time.perf_counter()
        path, notes = _kv(name, model, length, text)
        _say(name, path, notes, time.perf_counter() - started, json)


def _say(name: str, path: Path, notes: dict[str, object], seconds: float, json: bool) -> None:
    if json:
        emit_json({"method": name, "path": str(path), "seconds": seconds, **notes})
        return
    for key, value in notes.items():
        print(f"{key.replace('_', ' ')}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")
    print(f"{path} ({seconds:.1f} s)")


def _is_scheduling(name: str) -> bool:
    from ..bench.lengths import TRAINERS

    return name in TRAINERS


def _schedule(
    name: str, model: str, prompts: Path, requests: int, max_tokens: int, chat: bool
) -> tuple[Path, dict[str, object]]:
    from ..bench.lengths import answer, calibrate, read_prompts
    from ..schedule.prediction.trained import write_trained

    answers, folder = answer(model, read_prompts(prompts, requests), max_tokens=max_tokens, chat=chat)
    predictor, notes = calibrate(name, answers)
    return write_trained(folder, name, predictor, notes), notes


def _kv(name: str, model: str, length: int, text: Path | None) -> tuple[Path, dict[str, object]]:
    from ..bench.calibration import CALIBRATORS
    from ..bench.quality.tasks.base import World
    from ..engine.calibrations import Calibrations
    from ..engine.lossy_layers import why_not_lossy
    from ..kernels.dispatch import restricted
    from ..models.load import load_model

    run = CALIBRATORS.get(name)
    assert callable(run)
    if length < 128:
        raise ConfigError(f"length is {length}; give 128 tokens or more")
    with restricted("reference"):  # gradients pass through plain torch only
        loaded = load_model(model, dtype="float32")
        longest = min(length, loaded.shape.max_position)
        reason = why_not_lossy(loaded, longest)
        if reason is not None:
            raise ConfigError(f"{name} cannot run on this model: {reason}")
        found, notes = run(loaded.model, World.make(loaded.tokenizer, longest, text=text), loaded.shape)
    path = Calibrations(loaded.path).save(name, found, {"length": longest, **notes})
    loaded.close()
    return path, notes
