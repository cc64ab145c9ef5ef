"""``pagoda bench weights``: what weight formats save and cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as opt
from ._output import emit_json
from ._session import check_model


def weights(
    model: opt.Model,
    formats: Annotated[
        str | None,
        typer.Option(
            help="Weight formats by semicolons; also FORMAT by gptq|awq|hqq|mixed, SHARE by width.",
            show_default="all, and the usual of those; without quality, formats alone",
        ),
    ] = None,
    beside: Annotated[str | None, typer.Option(help="Folders that `pagoda prune` made of it, by semicolons.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text to judge on.", show_default="the model's own samples")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of that text.")] = 2048,
    calibration: Annotated[
        Path | None, typer.Option(help="Text for gptq, awq and mixed.", show_default="the model's own samples")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of that text.")] = 16384,
    quality: Annotated[
        bool, typer.Option(help="Measure perplexity, KL, agreement and recall; of random weights they say nothing.")
    ] = True,
    speed: Annotated[bool, typer.Option(help="Measure decode beside the exact model.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for weights-MODEL.json, .md and .svg.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Page whose price list is rewritten.")] = None,
    add: Annotated[bool, typer.Option("--add", help="With --docs: put the prices among those that are there.")] = False,
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Price weight formats: bytes, perplexity, KL divergence, recall and speed, beside the exact model."""
    check_model(model)
    from ..bench.weights_names import USUAL, check_name, read_text
    from ..core.errors import ConfigError
    from ..weights.formats import FORMATS
    from ..weights.method_names import READING

    if add and docs is None:
        raise ConfigError("--add puts prices into a page; say which one with --docs")
    if quality and tokens < 2:
        raise ConfigError(f"--tokens is {tokens}; give a whole number from 2: the second is the first that is judged")
    if not quality and text is not None:
        raise ConfigError(f"--text {text} is judged for quality; leave it out, or --no-quality")
    usual = [*FORMATS.names(), *(USUAL if quality else ())]
    names = usual if formats is None else [name.strip() for name in formats.split(";")]
    others = [] if beside is None else [name.strip() for name in beside.split(";")]
    for name in names:
        check_name(name)
    calibrated = read_text(names)
    if calibration is not None and not calibrated:
        raise ConfigError(f"--calibration {calibration}: none of these formats is made by {', '.join(READING)}")
    if calibration_tokens < 1:
        raise ConfigError(f"--calibration-tokens is {calibration_tokens}; give a whole number from 1")
    from ..bench.weights import price
    from ..bench.weights_report import added, around_table, drawing, markdown, rewrite
    from ._progress import counter
    from .quantize import calibration_tokens as tokens_of

    if docs is not None:
        around_table(docs, model)  # a page that cannot be rewritten is refused before anything is measured
    judged = tokens_of(model, text, tokens, memory) if quality else []
    learned = tokens_of(model, calibration, calibration_tokens, memory) if calibrated else []
    with counter(1 + len(names) + len(others), every=1) as progress:
        found = price(
            model, names, judged, beside=others, calibration=learned, quality=quality, speed=speed, memory=memory,
            progress=progress, left_out=_say if formats is None else None,
        )  # fmt: skip
    if add and docs is not None:
        found = added(docs, found)
    if out is not None:
        _write(out, f"weights-{Path(model).name}", found.as_dict(), markdown(found), drawing(found))
    if docs is not None:
        rewrite(docs, found)
    emit_json(found.as_dict()) if json else print(markdown(found))


def _say(name: str, reason: str) -> None:
    print(f"left out: {name} ({reason})", file=sys.stderr)


def _write(folder: Path, stem: str, data: dict[str, Any], table: str, picture: str) -> None:
    from json import dumps

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / f"{stem}.md").write_text(table + "\n", encoding="utf-8")
    (folder / f"{stem}.svg").write_text(picture, encoding="utf-8")
