"""Write a ReLU model's neurons so that one read brings one: for --weights sparse-ffn.

pagoda bundle MODEL
pagoda run MODEL "Once upon a time" --weights sparse-ffn --memory 800MiB
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.units import format_bytes
from . import _options as opt
from ._output import emit_json
from ._session import check_model

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def bundle(
    model: opt.Model,
    rank: Annotated[
        int, typer.Option(help="Rank of a predictor that says which neurons to read; 0: gate (or up) says it, exactly.")
    ] = 0,
    margin: Annotated[float, typer.Option(help="Standard deviations of its error that a predictor allows for.")] = 1.0,
    text: Annotated[
        Path | None, typer.Option(help="Calibration text of a predictor.", show_default="the model's own samples")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens.")] = 8192,
    dtype: Annotated[
        str, typer.Option(help="auto, float32 or bfloat16: the dtype that the model will run in.")
    ] = "auto",
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Write a ReLU model's neurons so that one read brings one: for --weights sparse-ffn."""
    from ..models.config_json import quantization_config
    from ..models.sparse_ffn import spec_to_bundle

    config = check_model(model)
    spec_to_bundle(Path(model), config, rank)  # before torch is loaded
    from ..models.load import load_model
    from ..models.neuron_file import bundle as write
    from ..models.resolve import resolve
    from ..weights.reader import Checkpoint
    from ..weights.source import open_source
    from .quantize import calibration_tokens

    folder = resolve(model)
    source = open_source(Checkpoint.open(folder), quantization_config(config))
    if not rank:
        found = write(folder, config, source, dtype=dtype)
    else:
        calibration = calibration_tokens(model, text, tokens, memory)
        loaded = load_model(model, quantization="none", dtype=dtype)
        try:
            found = write(
                folder, config, source, dtype=dtype, rank=rank, loaded=loaded, calibration=calibration, margin=margin
            )
        finally:
            loaded.close()
    if json:
        emit_json(found)
        return
    how = f"a predictor of rank {rank}" if rank else "exact"
    size = format_bytes(found["row_bytes"])
    print(f"{found['file']}: {found['layers']} layers of {found['neurons']} neurons, {size} each, {how}")
