"""Write a model in a weight format, its codes chosen by calibration.

pagoda quantize lantern small --format int4 --method gptq
pagoda quantize lantern small --format "int4(group=32)" --method distill --text stories.txt
pagoda quantize lantern mixed --method mixed --size 2MiB
pagoda quantize MIXTURE small --method edgemoe --format int8 --size 3GiB
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, choices
from ..core.units import format_bytes, parse_bytes
from . import _options as opt
from ._loading import bar, ledger_of
from ._output import emit_json, print_table
from ._session import check_model

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def quantize(
    model: opt.Model,
    out: Annotated[Path, typer.Argument(help="A new folder for the quantized model.", show_default=False)],
    format: Annotated[str, typer.Option(help="Weight format: int8, int5, int4, int4(group=32), nf4, …")] = "int4",
    method: Annotated[
        str,
        typer.Option(
            help="rtn, gptq, awq, hqq; distill: codes and scales trained; mixed: formats by measured harm; "
            "mixed+distill; edgemoe: formats of experts."
        ),
    ] = "rtn",
    size: Annotated[
        str | None, typer.Option(help="With mixed, edgemoe: most bytes of all weights.", show_default="as --format")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Calibration text.", show_default="the model's own samples")] = None,
    tokens: Annotated[int | None, typer.Option(help="Calibration tokens.", show_default="16384")] = None,
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Write a model in a weight format, its codes chosen by calibration.

    By rtn and hqq one tensor after another, in the memory of one.
    """
    check_model(model)
    from ..weights.method_names import BY_MATRIX, BY_TENSOR, CHOOSING, READING
    from ..weights.quantization import parse_quantization

    if method not in (known := {*BY_MATRIX, *READING}):
        raise ConfigError(choices("method", method, known))
    for option, value in (("--text", text), ("--tokens", tokens)):
        if value is not None and method not in READING:
            raise ConfigError(f"{option} {value}: {method} reads no calibration text; leave it out, or take gptq")
    if tokens is not None and tokens < 1:
        raise ConfigError(f"--tokens is {tokens}; give a whole number from 1")
    if size is not None and method not in CHOOSING:
        raise ConfigError(f"--size is for --method {' or '.join(CHOOSING)}; {method} takes the bytes of --format")
    quantization = parse_quantization(format)
    if quantization.is_plain:
        raise ConfigError(f"--format {format!r} leaves the weights as they are; give one like int4")
    calibration = calibration_tokens(model, text, tokens or 16384, memory) if method in READING else []
    if method in BY_TENSOR:
        report = _by_tensor(method, model, out, quantization, memory)
    else:
        report = _by_method(method, model, out, quantization, size, calibration, memory)
    from ..models.quantize import info

    shown = {
        "model": model,
        "out": str(out),
        "calibration_tokens": sum(map(len, calibration)),
        **info(report),
    }
    emit_json(shown) if json else _show(shown)


def _by_method(
    method: str, model: str, out: Path, quantization: Any, size: str | None, calibration: Any, memory: str | None
) -> Any:
    """What was written of the model, whole in memory."""
    from ..models.distill import distill
    from ..models.quantize import check_new, quantize_model
    from ..weights.method_names import BY_MATRIX, CHOOSING, TRAINED

    check_new(out)  # before minutes are spent
    loaded, ready = _load(model, memory), None
    try:
        if method in CHOOSING:
            with bar("measuring") as progress:
                quantization, ready = _choose(method, loaded, quantization, size, calibration, progress)
        if method in TRAINED:
            with bar("training") as progress:
                ready = distill(loaded, quantization, calibration, progress, start=ready)
        with bar("quantizing") as progress:
            how = method if method in BY_MATRIX else "rtn"
            return quantize_model(
                loaded, out, quantization, method=how, calibration=calibration, ready=ready, called=method,
                progress=progress,
            )  # fmt: skip
    finally:
        loaded.close()


def calibration_tokens(model: str, text: Path | None, count: int, memory: str | None) -> list[list[int]]:
    """Token ids in pieces of at most 256: of the file, or of samples from the model itself."""
    from ..engine.llm import LLM
    from ..sampling.params import SamplingParams

    with LLM(model, memory=memory) as llm:
        length = min(256, llm.max_model_len)
        if text is not None:
            ids = llm.tokenizer.encode(opt.read_text(text))[:count]
            return [ids[i : i + length] for i in range(0, len(ids), length)]
        start = llm.tokenizer.encode("") or llm.tokenizer.encode("The")
        params = [
            SamplingParams(max_tokens=length - len(start), temperature=1.0, seed=seed, ignore_eos=True)
            for seed in range(-(-count // length))
        ]
        return [start + out.outputs[0].token_ids for out in llm.generate([start] * len(params), params)]


def _load(model: str, memory: str | None) -> Any:
    from ..models.load import load_model

    return load_model(model, quantization="none", ledger=ledger_of(memory))


def _by_tensor(method: str, model: str, out: Path, quantization: Any, memory: str | None) -> Any:
    from ..models.quantize_tensors import round_checkpoint

    with bar("rounding") as progress:
        return round_checkpoint(model, out, quantization, method=method, ledger=ledger_of(memory), progress=progress)


def _choose(
    method: str, loaded: Any, uniform: Any, size: str | None, calibration: list[list[int]], progress: Any
) -> tuple[Any, Any]:
    """Formats by parameter, and the codes of those that have been chosen already."""
    from ..models import expert_bits, mixed
    from ..weights.quantization import parse_format

    budget = loaded.shape.weight_bytes(loaded.dtype, uniform) if size is None else parse_bytes(size, what="--size")
    of_method = (expert_bits if method == "edgemoe" else mixed).CANDIDATES
    candidates = [parse_format(text) for text in of_method]
    least = _least(method, loaded, uniform, candidates)
    if budget < least:
        raise ConfigError(
            f"--size {size or f'as --format: {budget} bytes'}: the smallest model of {method}'s formats takes "
            f"{least} bytes; give at least {-(-least >> 10)}KiB"
        )
    if method == "edgemoe":
        return expert_bits.expert_bits(loaded, uniform, candidates, budget, calibration, progress).quantization, None
    found = mixed.mixed(loaded, candidates, budget, calibration, progress)
    return found.quantization, found.codes


def _least(method: str, loaded: Any, uniform: Any, candidates: list[Any]) -> int:
    """Bytes of the model with the smallest format for every matrix that the method may choose for."""
    from ..weights.quantization import Quantization

    chosen = ("experts",) if method == "edgemoe" else ("linear", "embed")
    others = uniform if method == "edgemoe" else Quantization()
    smallest = {
        m.name: min(candidates, key=lambda found: found.num_bytes(m.rows, m.cols))
        for m in loaded.shape.matrices
        if m.role in chosen
    }
    least: int = loaded.shape.weight_bytes(
        loaded.dtype, Quantization(others.linear, others.embed, {**others.overrides, **smallest})
    )
    return least


def _show(found: dict[str, Any]) -> None:
    rows = [
        [name, p["format"], format_bytes(p["bytes"]), f"{p['relative_error']:.4f}"]
        for name, p in found["parameters"].items()
    ]
    print_table(f"{found['model']} by {found['method']}", ["parameter", "format", ">bytes", ">relative error"], rows)
    print(f"{format_bytes(found['bytes_before'])} -> {format_bytes(found['bytes_after'])} in {found['out']}")
