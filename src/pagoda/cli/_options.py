"""Options that several commands share. Nothing is checked twice: the engine's own checks speak for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from ..kv.codecs import CODECS  # two folders that are listed: nothing in them is imported
from ..kv.policies import POLICIES

Model = Annotated[str, typer.Argument(help="lantern (embedded), a folder, or a Hugging Face id.", show_default=False)]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Budget: 2GiB, 512M, or a share of the machine: 0.5, 50%. Default: what is left, minus a margin."
    ),
]
KV = Annotated[
    str,
    typer.Option(
        help="KV policy, or several joined by +: exact, snapkv(budget=0.25), h2o+int8, quest(pages=32)+offload. "
        f"There are: {', '.join([*POLICIES.names(), *CODECS.names()])}, offload (docs/kv-policies.md)."
    ),
]
KVCacheDtype = Annotated[
    str, typer.Option(help="How KV is stored: auto, float32, bfloat16, float16, int8, fp8 or int4.")
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Quantization = Annotated[
    str,
    typer.Option("--quantization", "-q", help="Weight format: auto, none, int8, int5, int4, int4(group=64), nf4, …"),
]
Weights = Annotated[
    str,
    typer.Option(
        help="resident, stream (read from disk at every step what does not fit), sparse-ffn (ReLU models), or auto."
    ),
]
SpoolDir = Annotated[
    str | None,
    typer.Option(
        help="Where weights that cannot be streamed as they lie are packed, once.", show_default="the user's cache"
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
MaxModelLen = Annotated[str, typer.Option(help="Most tokens of prompt and answer together, or auto.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.", show_default="256")]
MinTokens = Annotated[int | None, typer.Option(help="No end before this many tokens.", show_default="0")]
Temperature = Annotated[float | None, typer.Option(help="0 = always the likeliest token.", show_default="the model's")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest that hold this probability.")]
TopK = Annotated[int | None, typer.Option(help="Sample among this many likeliest; 0 = all.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens below this share of the likeliest one.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: tokens seen before become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.", show_default="a fresh one")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text (may be repeated).")]
ChatTemplate = Annotated[
    str | None, typer.Option(help="A Jinja template, or a file with one.", show_default="the model's")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output, nothing else on stdout.")]


def length(text: str) -> int | str:
    """``auto`` or a number of tokens."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise ConfigError(f"max-model-len is {text!r}; accepted: auto, or a whole number of tokens") from None


def given(**options: Any) -> dict[str, Any]:
    """Only what the user said: everything else stays the model's or the library's default."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigError naming a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def read_template(text: str | None) -> str | None:
    """A template itself, or the text of the file that it names."""
    if text is None or "{" in text:
        return text
    try:
        with open(text, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat template {text!r} is neither a template nor a readable file ({error})") from error
