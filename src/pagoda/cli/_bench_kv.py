"""pagoda bench kv: what KV policies save and cost.

pagoda bench kv lantern                                                methods x budgets over quality tasks
pagoda bench kv lantern --policies snapkv,h2o --budgets 0.25 --out .   JSON, markdown and pictures
pagoda bench kv lantern --no-quality --docs docs/kv-policies.md        the speeds of a page's list, measured again
pagoda bench kv lantern --add --policies tova --docs …                 one method, beside those that the page lists
pagoda bench kv lantern --no-quality --no-speed --docs … --methods …   what the pages say of each method; nothing is run
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from . import _options as opt
from ._output import emit_json
from ._session import check_model

if TYPE_CHECKING:
    from ..bench.kv import PriceList


def kv(
    model: Annotated[str, typer.Argument(help="lantern, a folder, or a Hugging Face id.")],
    policies: Annotated[
        str | None, typer.Option(help="Comma-separated.", show_default="every method, controls at several budgets")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Comma-separated: tokens per head, or shares of the prompt.", show_default="0.25")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated.", show_default="all that need no data; with --add the page's")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(help="Cases of each task.", show_default="18; with --add the page's")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a case.", show_default="at most 768; with --add the page's")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text file to draw passages from; may be given several times.", show_default="made up"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of shared data (for the topics task).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for kv-MODEL.json, .md and .png.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Page whose price list is rewritten.")] = None,
    methods: Annotated[Path | None, typer.Option(help="With --docs: page of methods that is rewritten.")] = None,
    add: Annotated[bool, typer.Option("--add", help="With --docs: put the prices among those that are there.")] = False,
    quality: Annotated[
        bool,
        typer.Option(help="Run the tasks. Without, --docs changes the page's speeds alone; with neither, its tables."),
    ] = True,
    speed: Annotated[
        bool, typer.Option(help="Measure prefill and decode beside exact. Without, --docs leaves the page's speeds.")
    ] = True,
    memory: opt.Memory = None,
    json: opt.Json = False,
) -> None:
    """Price KV policies: bytes held and read, quality and speed, beside exact."""
    check_model(model)
    read = ", ".join(map(str, text or [])) or None
    judged = {"tasks": tasks, "cases": cases, "text": read, "data": data}
    _check(cases, quality, speed or docs is not None, add, judged)
    _check_names(policies, budgets, tasks)
    from ..bench.forced import ForcedEngine
    from ..bench.kv import price
    from ..bench.kv_page import accept_exact, listed
    from ..bench.kv_report import markdown
    from ..bench.quality.tasks.base import World

    page = _places(_short(model), out, docs, methods, add)
    if not quality and not speed:
        _check_unused({"policies": policies, "budgets": budgets, "length": length, "memory": memory, "out": out})
        _write_tables(page, docs, methods)
        return
    beside = listed(page, _short(model)) if add else None
    names = _tasks(tasks, data, beside) if quality else []
    cases, length = _as_listed(cases, length, beside)
    chosen = _chosen(policies, budgets, None if quality else page, _short(model))
    with ForcedEngine(model, **opt.given(memory=memory)) as engine:
        not_priced = {} if policies else {kv: why for kv, _, _ in chosen if (why := engine.why_not(kv)) is not None}
        chosen = [one for one in chosen if one[0] not in not_priced]
        longest = engine.engine.max_model_len
        world = World.make(engine.built.loaded.tokenizer, _length(length, longest), text=text or (), data=data)
        accept = {} if beside is None else {"accept": accept_exact(beside)}
        with _bar(len(chosen) + 1) as progress:
            found = price(
                engine, world, chosen, names, cases, model=_short(model), with_speed=speed, progress=progress, **accept
            )
    found.not_priced = not_priced
    found.speeds_of = _here() if speed else ""
    _write(found, page, out, docs, methods, add)
    if json:
        emit_json(found.as_dict())
    else:
        print(markdown(found))


def _chosen(
    policies: str | None, budgets: str | None, page: str | None, model: str
) -> list[tuple[str, str, int | float | None]]:
    """What is to be priced. ``page``: one whose speeds are measured again, of all its rows where none are named."""
    from ..bench.kv_names import spell
    from ..bench.kv_page import listed

    old = listed(page, model) if page and not policies and not budgets else None
    if old is not None:
        return [(one.kv, one.method, one.budget) for one in old.prices if one.kv != "exact"]
    chosen = spell(_split(policies) or _all_policies(), [_number(b) for b in _split(budgets) or ["0.25"]])
    if budgets is not None and all(budget is None for _, _, budget in chosen):
        raise ConfigError(f"--budgets {budgets}: none of these policies takes one from there; leave it out")
    return chosen


def _here() -> str:
    """Today and this machine, as speeds want them beside."""
    from datetime import date

    from ..budget.probe import MachineProbe

    probe, today = MachineProbe(), date.today()
    cpus = "one CPU" if probe.cpus() == 1 else f"{probe.cpus()} CPUs"
    return f"{today.day} {today:%B %Y}, {probe.cpu_model() or 'a nameless processor'}, {cpus}"


def _tasks(tasks: str | None, data: Path | None, beside: PriceList | None) -> list[str]:
    """Those that are named, else those that fill the columns of the list ``beside``, else all."""
    from ..bench.quality.tasks import TASKS

    names = _split(tasks)
    if names:
        return names
    names = [name for name in TASKS.names() if name != "topics" or data is not None]
    if beside is None:
        return names
    columns = {*beside.prices[0].quality, *beside.left_out}
    return [name for name in names if columns & TASKS.get(name).metrics.keys()]  # type: ignore[attr-defined]


def _as_listed(cases: int | None, length: int | None, beside: PriceList | None) -> tuple[int, int | None]:
    """How many cases of how many tokens. Raises ConfigError for others than those of the list ``beside``."""
    if beside is None:
        return (18 if cases is None else cases), length
    for name, value, listed in (("cases", cases, beside.count), ("length", length, beside.length)):
        if value not in (None, listed):
            raise ConfigError(f"--{name} {value}: the page's list for {beside.model} has {listed}; leave it out")
    return beside.count, beside.length


def _check(cases: int | None, quality: bool, speed: bool, add: bool, judged: dict[str, object]) -> None:
    """Raises ConfigError for options that would be ignored."""
    if cases is not None and cases < 1:
        raise ConfigError(f"cases is {cases}; give a whole number from 1")
    if not quality and not speed:
        raise ConfigError(
            "--no-quality and --no-speed leave nothing to measure; leave one of them out, or give --docs, whose tables "
            "of methods are then written anew"
        )
    for name, value in judged.items():
        if not quality and value is not None:
            raise ConfigError(f"--{name} {value} is of the quality tasks; leave it out, or --no-quality")
    if not quality and add:
        raise ConfigError("--no-quality adds no prices, it changes the speeds of those that are there; leave --add out")


def _check_names(policies: str | None, budgets: str | None, tasks: str | None) -> None:
    """Raises ConfigError for names and budgets that say nothing."""
    from ..bench.kv_names import spell
    from ..bench.quality.tasks import TASKS

    for name in _split(tasks):
        TASKS.check(name)
    spell(_split(policies), [_number(b) for b in _split(budgets)])


def _check_unused(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name} {value}: --no-quality --no-speed measures nothing; leave it out")


def _places(model: str, out: Path | None, docs: Path | None, methods: Path | None, add: bool) -> str:
    """The page that is to be rewritten; what cannot be written is refused before anything is measured."""
    from ..bench.kv_page import read_page
    from ..bench.kv_report import splice

    for name, given in (("--add", add), ("--methods", methods is not None)):
        if given and docs is None:
            raise ConfigError(f"{name} is about the price list of a page; say which one with --docs")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be made ({error.strerror})") from error
    if methods is not None:
        splice(opt.read_text(methods), "methods", "")
    if docs is None:
        return ""
    page = read_page(docs, model)
    splice(page, "methods", "")
    return page


def _write(found: PriceList, page: str, out: Path | None, docs: Path | None, methods: Path | None, add: bool) -> None:
    from ..bench.kv_page import listed, with_prices
    from ..bench.kv_report import markdown, plot, plot_heat

    if out is not None:
        import json

        name = f"kv-{found.model}"  # which may have dots
        (out / f"{name}.json").write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
        (out / f"{name}.md").write_text(markdown(found) + "\n", encoding="utf-8")
        if found.prices[0].quality:
            plot(found, out / f"{name}.png")
            plot_heat(found, out / f"{name}-recall.png")
    if docs is not None:
        page = _write_tables(with_prices(page, found, add=add), docs, methods)
        images, whole = docs.parent / "img", listed(page, found.model)
        if found.prices[0].quality and whole is not None:
            images.mkdir(exist_ok=True)
            plot(whole, images / f"kv-{found.model}.png")
            if not add:  # where the rows that stay answered right, the page does not say
                plot_heat(found, images / f"kv-{found.model}-recall.png")


def _write_tables(page: str, docs: Path | None, methods: Path | None) -> str:
    """Every registered method in ``docs``, which holds ``page`` then, and in ``methods``, with what the page's lists
    say of it.
    """
    from ..bench.kv_methods import methods_table, methods_text
    from ..bench.kv_page import all_listed
    from ..bench.kv_report import splice

    assert docs is not None
    page = splice(page, "methods", methods_table())
    docs.write_text(page, encoding="utf-8")
    if methods is not None:
        text = methods_text(all_listed(page))
        methods.write_text(splice(opt.read_text(methods), "methods", text), encoding="utf-8")
    return page


def _all_policies() -> list[str]:
    """Every method; each codec by itself and behind an eviction; allocators over several scorers; controls at the bytes
    that others hold, and plain rounding.
    """
    from ..bench.kv_judge import CONTROLS
    from ..kv.codecs import CODECS
    from ..kv.policies import POLICIES

    controls = [f"{name}(budget={budget})" for name in CONTROLS for budget in (0.31, 0.42, 0.6)]
    methods = [name for name in POLICIES.names() if name not in ("exact", *CONTROLS)]
    composed = [f"snapkv+{name}" for name in (*CODECS.names(), "kivi")]
    return [*CONTROLS, *controls, *methods, *CODECS.names(), *composed, *VARIANTS]


VARIANTS = (
    "snapkv(budget=0.125)", "snapkv(budget=0.5)", "streaming_llm(budget=0.5)", "h2o(budget=0.5)",
    "kvmerger(budget=0.5)", "quest(pages=0.1)", "h2o+ada", "h2o+pyramid", "scissorhands+ada",
    "duo_attention(retrieval=0.125)", "razor_attention(retrieval=0.125)", "windowkv(group=1)", "duo_attention+lserve",
    "snapkv+quest", "kivi(bits=4)", "kivi(bits=4, window=0)", "int2(keys='token')",
    "bfp_outlier_rearrange(rearrange=False)",
)  # fmt: skip
"""Of the methods, what the list has beside their defaults."""


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
