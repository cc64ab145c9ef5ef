"""Write a smaller model: fewer neurons, or fewer tokens.

pagoda prune MODEL OUT --width 0.9
pagoda prune MODEL OUT --vocab stories.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, ModelError
from ..core.units import format_bytes
from . import _options as opt
from ._output import emit_json
from ._session import check_model

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def prune(
    model: opt.Model,
    out: Annotated[Path, typer.Argument(help="A new folder for the smaller model.", show_default=False)],
    width: Annotated[float | None, typer.Option(help="Share of the neurons of every layer that stays.")] = None,
    vocab: Annotated[Path | None, typer.Option(help="Text whose tokens stay (with all bytes and marks).")] = None,
    json: opt.Json = False,
) -> None:
    """Write a smaller model: fewer neurons, or fewer tokens."""
    check_model(model)
    if (width is None) == (vocab is None):
        raise ConfigError("give one of --width SHARE and --vocab FILE; what comes of it can be pruned again")
    from ..models.config_json import quantization_config, read_config
    from ..models.prune import KEPT, empty_model, vocabulary_slices, width_slices, write_pruned
    from ..models.resolve import resolve
    from ..weights.reader import Checkpoint
    from ..weights.source import open_source

    folder = resolve(model)
    config = read_config(folder)
    source = open_source(Checkpoint.open(folder), quantization_config(config))
    empty = empty_model(folder, config)
    found: dict[str, Any] = {"model": model, "out": str(out), "bytes_before": source.checkpoint.num_bytes}
    files: dict[str, Any] = {}
    if width is not None:
        neurons, slices = width_slices(folder, empty, source, width)
        config = {**config, "intermediate_size": neurons}
        found["neurons"] = neurons
    else:
        assert vocab is not None
        kept, config, files = _cut_vocabulary(folder, config, vocab)
        slices = vocabulary_slices(empty, source, kept)
        found["tokens"] = len(kept)
        files[KEPT] = kept
    found["bytes_after"] = write_pruned(folder, out, source, slices, config, files)
    if json:
        emit_json(found)
        return
    what = f"{found['neurons']} neurons a layer" if width is not None else f"{found['tokens']} tokens"
    print(f"{format_bytes(found['bytes_before'])} -> {format_bytes(found['bytes_after'])} in {out}: {what}")


def _cut_vocabulary(
    folder: Path, config: dict[str, Any], text: Path
) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """(ids that stay, config.json, the other files that name ids)."""
    from ..models.prune_vocab import cut_config, cut_tokenizer, cut_tokenizer_config, kept_tokens
    from ..models.tokenizer import Tokenizer, read_json

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder}: no tokenizer.json, whose vocabulary could be cut")
    words = read_json(file)
    kept = kept_tokens(str(folder), words, set(Tokenizer.from_dir(folder, config).encode(opt.read_text(text))))
    files = {"tokenizer.json": cut_tokenizer(words, kept)}
    for name, cut in (("generation_config.json", cut_config), ("tokenizer_config.json", cut_tokenizer_config)):
        if (folder / name).is_file():
            files[name] = cut(read_json(folder / name), kept)
    return kept, cut_config(config, kept), files
