"""``pagoda bench weights``: what weight formats save and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as opt
from ._output import emit_json


def weights(
    model: opt.Model,
    formats: Annotated[
        str | None, typer.Option(help="Weight formats, separated by semicolons.", show_default="all")
    ] = None,
    beside: Annotated[str | None, typer.Option(help="Folders that `pagoda prune` made of it, by semicolons.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text to judge on.", show_default="the model's own samples")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of that text.")] = 2048,
    speed: Annotated[bool, typer.Option(help="Measure decode beside the exact model.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for weights-MODEL.json, .md and .svg.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Page whose price list is rewritten.")] = None,
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Price weight formats: bytes, perplexity, KL divergence, recall and speed, beside the exact model."""
    from ..bench.weights import price
    from ..bench.weights_report import drawing, markdown, rewrite
    from ..weights.formats import FORMATS
    from .quantize import calibration_tokens

    names = FORMATS.names() if formats is None else [name.strip() for name in formats.split(";")]
    others = [] if beside is None else [name.strip() for name in beside.split(";")]
    judged = calibration_tokens(model, text, tokens, memory)
    found = price(model, names, judged, beside=others, speed=speed, memory=memory)
    if out is not None:
        _write(out, f"weights-{Path(model).name}", found.as_dict(), markdown(found), drawing(found))
    if docs is not None:
        rewrite(docs, found)
    emit_json(found.as_dict()) if json else print(markdown(found))


def _write(folder: Path, stem: str, data: dict[str, Any], table: str, picture: str) -> None:
    from json import dumps

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / f"{stem}.md").write_text(table + "\n", encoding="utf-8")
    (folder / f"{stem}.svg").write_text(picture, encoding="utf-8")
