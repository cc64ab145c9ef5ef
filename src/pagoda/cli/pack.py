"""Write packed weights beside a model, for starts that map them.

pagoda pack MODEL                       as MODEL runs by default: its own numbers, in the kernels' order
pagoda pack MODEL --quantization w8a8   one file for each choice of formats
"""

from __future__ import annotations

import typer

from ..core.errors import ConfigError
from ..core.units import format_bytes
from . import _options as opt
from ._loading import bar, ledger_of
from ._output import emit_json
from ._session import check_model

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def pack(
    model: opt.Model,
    quantization: opt.Quantization = "auto",
    dtype: opt.Dtype = "auto",
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Write packed weights beside a model, for starts that map them.

    In the memory of the packed model. The file takes as much of the disk; it is of use as long as the model's files do
    not change, and may be deleted whenever nothing runs from it.
    """
    check_model(model)
    from ..models.load import load_model

    with bar("loading") as progress:
        loaded = load_model(
            model, dtype=dtype, quantization=quantization, device="cpu", weights="resident", ledger=ledger_of(memory),
            use_packed=False, progress=progress,
        )  # fmt: skip
    try:
        packed = loaded.packed
        if packed is None:
            raise ConfigError(
                f"{model}: its weights are not kept in panels with --quantization {quantization} on this machine, so "
                "that a file would spare nothing"
            )
        with bar("writing") as progress:
            num_bytes = packed.write(progress)
    finally:
        loaded.close()
    found = {"model": model, "file": str(packed.file), "formats": str(loaded.quantization), "bytes": num_bytes}
    if json:
        emit_json(found)
    else:
        print(f"{packed.file} ({loaded.quantization}, {format_bytes(num_bytes)})")
