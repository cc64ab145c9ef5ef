"""Look at a model once for the KV policies, or teach the scheduling policies, that need it.

pagoda calibrate duo_attention MODEL                writes kv-calibration/duo_attention.json beside the model
pagoda calibrate locret MODEL                       trains its heads: kv-calibration/locret.safetensors
pagoda calibrate "csr(nonzeros=4)" MODEL             for a model whose heads are too small for the usual parameters
pagoda calibrate all MODEL                          every KV policy that needs it, can run there, and has no file yet
pagoda calibrate trail MODEL --prompts FILE         writes schedule-calibration/trail.json beside the model
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError, RequestError, choices
from ..schedule.prediction.trained import TAUGHT
from . import _options as opt
from ._output import emit_json
from ._session import check_model

SHORTEST, PAGE_SIZE = 128, 16

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def calibrate(
    method: Annotated[
        str, typer.Argument(help="duo_attention, locret, … or all KV policies that need it; learning_to_rank, trail.")
    ],
    model: Annotated[str, typer.Argument(help="lantern, a folder, or a Hugging Face id.")],
    length: Annotated[int, typer.Option(help="KV policies: tokens of a text.")] = 512,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="KV policies: text file whose last quarter is looked at; may be given several times.",
            show_default="made up",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Scheduling policies: what the model is asked, JSON lines or a text a line.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Scheduling policies: at most so many of the prompts.", min=20)] = 400,
    max_tokens: Annotated[int, typer.Option(help="Scheduling policies: answers are cut there.", min=2)] = 512,
    chat: Annotated[bool, typer.Option(help="Scheduling policies: ask through the chat template.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write a file anew that is there already, as all of lantern's are.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Look at a model once for the KV policies, or teach the scheduling policies, that need it."""
    name, started = method.replace("-", "_"), time.perf_counter()
    if length < SHORTEST:
        raise ConfigError(f"length is {length}; give {SHORTEST} tokens or more")
    check_model(model)
    _check_name(name)
    if name in TAUGHT:
        if prompts is None:
            raise ConfigError(f"{name} learns from the model's answers; give --prompts FILE")
        if text:
            raise ConfigError(f"{name} learns from prompts; leave --text out")
        path, notes = _schedule(name, model, prompts, requests, max_tokens, chat, force)
    elif prompts is not None:
        raise ConfigError(f"{name} reads no prompts; leave --prompts out")
    elif name == "all":
        _every(model, length, text or [], force, json)
        return
    else:
        path, notes = _kv(name, model, length, text or [], force)
    _say(name, path, notes, time.perf_counter() - started, json)


def _every(model: str, length: int, text: list[Path], force: bool, json: bool) -> None:
    """One method after the other; those that cannot be run, or are there already, are named with the reason."""
    from ..bench.calibration import CALIBRATORS

    left_out = []
    for name in CALIBRATORS.names():
        started = time.perf_counter()
        try:
            path, notes = _kv(name, model, length, text, force)
        except (ConfigError, RequestError) as error:
            left_out.append(str(error))
            if json:
                emit_json({"method": name, "left_out": str(error)})
            else:
                print(f"left out: {error}")
            continue
        _say(name, path, notes, time.perf_counter() - started, json)
    if len(left_out) == len(CALIBRATORS.names()):
        raise ConfigError(f"nothing was calibrated; of the last: {left_out[-1]}")


def _say(name: str, path: Path, notes: dict[str, object], seconds: float, json: bool) -> None:
    if json:
        emit_json({"method": name, "path": str(path), "seconds": seconds, **notes})
        return
    for key, value in notes.items():
        print(f"{key.replace('_', ' ')}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")
    print(f"{path} ({seconds:.1f} s)")


def _check_name(method: str) -> None:
    """Raises ConfigError for a method that is not there, or is not calibrated."""
    from ..bench.calibration import CALIBRATORS
    from ..kv.grammar import parse_policy

    name = kv_name(method)
    if name in TAUGHT or method == "all":
        return
    if name not in CALIBRATORS.names():
        raise ConfigError(choices(CALIBRATORS.kind, name, [*CALIBRATORS.names(), *TAUGHT, "all"]))
    if len(parse_policy(method).names) > 1:
        raise ConfigError(f"{method}: one method at a time; name {name} alone")


def kv_name(method: str) -> str:
    return method.partition("+")[0].partition("(")[0].strip()


def _schedule(
    name: str, model: str, prompts: Path, requests: int, max_tokens: int, chat: bool, force: bool
) -> tuple[Path, dict[str, object]]:
    from ..bench.lengths import answer, calibrate, read_prompts
    from ..models.resolve import resolve
    from ..schedule.prediction.trained import trained_path, write_trained

    _check_free(name, trained_path(resolve(model), name), force)
    answers, folder = answer(model, read_prompts(prompts, requests), max_tokens=max_tokens, chat=chat)
    predictor, notes = calibrate(name, answers)
    return write_trained(folder, name, predictor, notes), notes


def _kv(method: str, model: str, length: int, text: list[Path], force: bool) -> tuple[Path, dict[str, object]]:
    from ..bench.calibration import CALIBRATORS
    from ..bench.quality.tasks.base import World
    from ..engine.calibrations import Calibrations
    from ..engine.lossy_layers import on_this_model
    from ..kernels.dispatch import restricted
    from ..kernels.torch_threads import torch_threads
    from ..kv.grammar import parse_policy
    from ..kv.stored_formats import why_not_stored
    from ..models.load import load_model
    from ..models.resolve import resolve

    name = kv_name(method)
    run, policy = CALIBRATORS.get(name), parse_policy(method)
    assert callable(run)
    _check_free(name, Calibrations(resolve(model)).found(name), force)
    with restricted("reference"), torch_threads(1):  # gradients pass through plain torch; sums as on any machine
        loaded = load_model(model, dtype="float32")
        try:
            longest = min(length, loaded.shape.max_position)
            reason = why_not_stored(policy.codec, loaded.shape.kv_format(PAGE_SIZE, "float32"))
            if reason is not None:
                raise ConfigError(f"kv={method!r} cannot run on this model: {reason}")
            on_this_model(policy, loaded, longest)  # as serving asks
            world = World.make(loaded.tokenizer, longest, text=text, learned=True)
            found, notes = run(loaded.model, world, loaded.shape)
            seen = {"length": longest, "text": [path.name for path in text] or "made up"}
            return Calibrations(loaded.path).save(name, found, {**seen, **notes}), notes
        finally:
            loaded.close()


def _check_free(name: str, path: Path | None, force: bool) -> None:
    """Raises ConfigError where something would be overwritten that nobody said may be."""
    if path is not None and path.is_file() and not force:
        raise ConfigError(
            f"{name} is calibrated: {path} is there already; give --force to write it anew, or copy the model's folder "
            "and calibrate that"
        )
