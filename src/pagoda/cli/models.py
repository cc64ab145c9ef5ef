"""List the models at hand, or show one model's size before loading it.

pagoda models                     native families, the embedded model, models in the Hugging Face cache
pagoda models Qwen/Qwen2.5-0.5B   parameters, bytes of weights per dtype, bytes of KV per token
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..core.errors import ModelError
from ..core.types import DTYPE_BYTES
from ..core.units import format_bytes
from . import _options as opt
from ._output import emit_json, print_table

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PAGE_SIZE = 16


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="Show this model: lantern, a folder, or a Hugging Face id.", show_default=False)
    ] = None,
    json: opt.Json = False,
) -> None:
    """List the models at hand, or show one model's size before loading it."""
    if model is None:
        data = catalog()
        emit_json(data) if json else _print_catalog(data)
    else:
        data = size_of(model)
        emit_json(data) if json else _print_size(data)


def catalog() -> dict[str, Any]:
    """Families by name, and every model that needs no download."""
    from ..models.catalog import cached_models, embedded_model
    from ..models.families import names

    found = []
    try:
        found.append((embedded_model(), "embedded"))
    except ModelError as error:
        found_error: str | None = str(error)
    else:
        found_error = None
    found += [(model, "cache") for model in cached_models()]
    rows = [
        {"name": m.name, "family": m.family, "bytes": m.num_bytes, "where": where, "path": str(m.path)}
        for m, where in found
    ]
    return {"families": names(), "models": rows, "problem": found_error}


def size_of(name: str) -> dict[str, Any]:
    """Dimensions and bytes of one model, from its config alone."""
    from ..models.catalog import read_config
    from ..models.families import is_native
    from ..models.shape import ModelShape
    from ..weights.formats import FORMATS
    from ..weights.quantization import parse_quantization

    config = read_config(name)
    family = str(config.get("model_type", ""))
    if not is_native(config):
        return {"model": name, "family": family, "native": False, "architectures": config.get("architectures", [])}
    shape = ModelShape.from_config(config)
    return {
        "model": name,
        "family": family,
        "native": True,
        "parameters": shape.num_params,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "layers": shape.num_layers,
        "query_heads": shape.num_q_heads,
        "kv_heads": shape.num_kv_heads,
        "context": shape.max_position,
        "sliding_window_layers": sum(window > 0 for window in shape.windows),
        "bytes": {
            dtype: {
                "weights": shape.weight_bytes(dtype),
                "kv_per_token": shape.kv_format(PAGE_SIZE, dtype).bytes_per_token,
                "kv_full_context": shape.kv_format(PAGE_SIZE, dtype).bytes_per_token * shape.max_position,
            }
            for dtype in sorted(DTYPE_BYTES)
        },
        "weight_formats": {
            name: shape.weight_bytes("bfloat16", parse_quantization(name)) for name in ("none", *FORMATS.names())
        },
    }


def _print_catalog(data: dict[str, Any]) -> None:
    rows = [[row["name"], row["family"] or "?", format_bytes(row["bytes"]), row["where"]] for row in data["models"]]
    print_table("Models on this machine", ["name", "family", ">size", "where"], rows)
    if data["problem"]:
        print(f"problem: {data['problem']}\n")
    families = data["families"]
    per_row = 5
    grid = [families[i : i + per_row] for i in range(0, len(families), per_row)]
    print_table(
        f"Native families ({len(families)}); other causal language models run through transformers",
        [""] * per_row,
        [row + [""] * (per_row - len(row)) for row in grid],
    )


def _print_size(data: dict[str, Any]) -> None:
    if not data["native"]:
        names = ", ".join(data["architectures"]) or "unknown architecture"
        print(f"{data['model']}: {data['family'] or 'no model_type'} ({names}) has no native family here.")
        print("If it is a causal language model it runs through transformers; its size is known once it is loaded.")
        return
    facts = [[key.replace("_", " "), f"{data[key]:,}"] for key in _FACTS]
    print_table(f"{data['model']} ({data['family']})", ["fact", ">value"], facts)
    rows = [[dtype, *(format_bytes(num) for num in sizes.values())] for dtype, sizes in data["bytes"].items()]
    columns = ["dtype", ">weights", ">KV per token", f">KV of {data['context']:,} tokens"]
    print_table("Bytes", columns, rows)
    full = data["weight_formats"]["none"]
    rows = [[name, format_bytes(num), f"{num / full:.3f}"] for name, num in data["weight_formats"].items()]
    print_table("Weights by --quantization, beside bfloat16", ["format", ">bytes", ">share"], rows)


_FACTS = (
    "parameters",
    "vocab_size",
    "hidden_size",
    "layers",
    "query_heads",
    "kv_heads",
    "context",
    "sliding_window_layers",
)
