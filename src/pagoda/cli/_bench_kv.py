"""pagoda bench kv: what KV policies save and cost.

pagoda bench kv lantern                                                methods x budgets over quality tasks
pagoda bench kv lantern --policies snapkv,h2o --budgets 0.25 --out .   JSON, markdown and a picture
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, choices
from . import _options as opt
from ._output import emit_json

if TYPE_CHECKING:
    from ..bench.kv import PriceList


def kv(
    model: Annotated[str, typer.Argument(help="lantern, a folder, or a Hugging Face id.")],
    policies: Annotated[str | None, typer.Option(help="Comma-separated; default: every policy and codec.")] = None,
    budgets: Annotated[str, typer.Option(help="Comma-separated: tokens per head, or shares of the prompt.")] = "0.25",
    tasks: Annotated[str | None, typer.Option(help="Comma-separated; default: all that need no data.")] = None,
    cases: Annotated[int, typer.Option(help="Cases of each task.")] = 18,
    length: Annotated[int | None, typer.Option(help="Tokens of a case.", show_default="at most 768")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file to draw passages from.", show_default="made up")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of shared data (for the topics task).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for kv-MODEL.json, .md and .png.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Page whose price list and methods are rewritten.")] = None,
    add: Annotated[bool, typer.Option("--add", help="With --docs: put the prices among those that are there.")] = False,
    speed: Annotated[bool, typer.Option(help="Measure prefill and decode beside exact.")] = True,
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Price KV policies: bytes held, quality and speed, beside exact."""
    from ..bench.forced import ForcedEngine
    from ..bench.kv import price, spell
    from ..bench.kv_report import markdown
    from ..bench.quality.tasks import TASKS
    from ..bench.quality.tasks.base import World

    if add and docs is None:
        raise ConfigError("--add puts prices into a page; say which one with --docs")
    if docs is not None and not speed:
        raise ConfigError("a page lists speeds, and --no-speed measures none; leave one of --docs and --no-speed out")
    chosen = spell(_split(policies) or _all_policies(), [_number(b) for b in _split(budgets)])
    names = _split(tasks) or [name for name in TASKS.names() if name != "topics" or data is not None]
    for name in names:
        if name not in TASKS.names():
            raise ConfigError(choices("quality task", name, TASKS.names()))
    if cases < 1:
        raise ConfigError(f"cases is {cases}; give a whole number from 1")
    with ForcedEngine(model, **opt.given(memory=memory)) as engine:
        longest = engine.engine.max_model_len
        world = World.make(engine.built.loaded.tokenizer, _length(length, longest), text=text, data=data)
        with _bar(len(chosen) + 1) as progress:
            found = price(engine, world, chosen, names, cases, model=_short(model), with_speed=speed, progress=progress)
    _write(found, out, docs, add)
    if json:
        emit_json(found.as_dict())
    else:
        print(markdown(found))


def _write(found: PriceList, out: Path | None, docs: Path | None, add: bool) -> None:
    from ..bench.kv_report import added, listed, markdown, methods_table, plot, splice

    if out is not None:
        import json

        out.mkdir(parents=True, exist_ok=True)
        stem = out / f"kv-{found.model}"
        stem.with_suffix(".json").write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(markdown(found) + "\n", encoding="utf-8")
        plot(found, stem.with_suffix(".png"))
    if docs is not None:
        page = splice(docs.read_text(encoding="utf-8"), "methods", methods_table())
        if add:
            page = added(page, found)
            docs.write_text(page, encoding="utf-8")
            plot(listed(page, found.model), docs.parent / "img" / f"kv-{found.model}.png")
            return
        note = f"{found.count} cases a task, {found.length} tokens each.\n\n"
        page = splice(page, f"prices {found.model}", note + markdown(found))
        docs.write_text(page, encoding="utf-8")
        plot(found, docs.parent / "img" / f"kv-{found.model}.png")


def _all_policies() -> list[str]:
    from ..kv.codecs import CODECS
    from ..kv.policies import POLICIES

    composed = [f"snapkv+{name}" for name in CODECS.names()]
    return [*(name for name in POLICIES.names() if name != "exact"), *CODECS.names(), *composed]


def _length(length: int | None, longest: int) -> int:
    if length is None:
        return min(768, longest - 8)
    if not 128 <= length <= longest - 8:
        raise ConfigError(f"length is {length}; this model holds cases of 128 to {longest - 8} tokens")
    return length


def _split(text: str | None) -> list[str]:
    """Parts between commas that stand outside parentheses."""
    parts, depth = [""], 0
    for char in text or "":
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _number(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ConfigError(f"budget {text!r} is not a number; give tokens per head or a share such as 0.25") from None


def _short(model: str) -> str:
    return Path(model).name


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    """``progress(what)`` draws on a terminal's stderr, and says nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("exact", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)
