"""Two drawings a machine: rates of products over the number of tokens, and how much longer others take for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .report import best_other, others
from .results import Line, Results
from .timing import REFERENCE

COLOURS = {
    "pagoda": "#b3282d",
    "torch": "#4c72b0",
    "torch packed": "#8172b3",
    "oneDNN packed": "#55a868",
    REFERENCE: "#8c8c8c",
}
PANELS_A_ROW = 5


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes ``ops-<machine>-linear.svg`` and ``ops-<machine>-ratios.svg``; the files' paths."""
    products = [line for line in results.lines if line.op == "linear"]
    rest = [line for line in results.lines if line.op != "linear" and best_other(line)]
    drawn = []
    for what, lines, way in (("linear", products, _rates), ("ratios", rest, _ratios)):
        if lines:
            drawn.append(folder / f"ops-{results.name}-{what}.svg")
            way(lines, drawn[-1])
    return drawn


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "pagoda", "svg.fonttype": "none"})  # the same figures, the same file
    from matplotlib import pyplot

    return pyplot


def _rates(lines: list[Line], path: Path) -> None:
    pyplot, tables = _pyplot(), list(dict.fromkeys(line.table for line in lines))
    num_rows = -(-len(tables) // PANELS_A_ROW)
    canvas, panels = pyplot.subplots(
        num_rows, PANELS_A_ROW, figsize=(3.4 * PANELS_A_ROW, 3.2 * num_rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(tables) :]:
        panel.axis("off")
    for panel, table in zip(panels.flat, tables, strict=False):
        mine = [line for line in lines if line.table == table]
        tokens = [line.about["tokens"] for line in mine]
        panel.plot(tokens, [line.num_ops / line.limit / 1e9 for line in mine], "k--", lw=0.8, label="limit")
        for way in ["pagoda", *others(mine)]:
            there = [line for line in mine if way in line.ways]
            rates = [line.num_ops / line.ways[way].median / 1e9 for line in there]
            at = [line.about["tokens"] for line in there]
            panel.plot(at, rates, marker="o", ms=3, lw=1.2, color=COLOURS.get(way, "#444444"), label=way)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(table, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6, frameon=False)
    canvas.supxlabel("tokens", fontsize=9)
    canvas.supylabel("Gop/s", fontsize=9)
    _save(pyplot, canvas, path)


def _ratios(lines: list[Line], path: Path) -> None:
    pyplot = _pyplot()
    canvas, panel = pyplot.subplots(figsize=(9, 1 + 0.17 * len(lines)), layout="constrained")
    places = range(len(lines), 0, -1)
    ways = [best_other(line) or "" for line in lines]
    ratios = [line.ratio(way) for line, way in zip(lines, ways, strict=True)]
    bars = panel.barh(
        places, [ratio - 1 for ratio in ratios], left=1, color=[COLOURS.get(way, "#444444") for way in ways]
    )
    panel.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], fontsize=6, padding=2)
    panel.set_yticks(places, [_label(line) for line in lines], fontsize=6)
    panel.set_xscale("log")
    panel.axvline(1, color="k", lw=0.8)
    panel.set_title("time of the fastest other way / Pagoda's (left of the line it is faster)", fontsize=9)
    panel.tick_params(axis="x", labelsize=7)
    panel.margins(x=0.1, y=0.01)
    _save(pyplot, canvas, path)


def _label(line: Line) -> str:
    about: Iterable[str] = (str(v) if isinstance(v, str) else f"{v} {k}" for k, v in line.about.items())
    return f"{line.op}: {', '.join(about)}"


def _save(pyplot: Any, canvas: Any, path: Path) -> None:
    for panel in canvas.axes:
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    canvas.savefig(path, metadata={"Date": None})
    pyplot.close(canvas)
