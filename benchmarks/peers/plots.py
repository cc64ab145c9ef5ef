"""One drawing a model: a panel for each setting, a bar for each engine and kind of weights."""

from __future__ import annotations

from pathlib import Path

from .settings import COLUMNS, WEIGHTS
from .summary import OURS, Figure, Summary

COLOURS = {
    "pagoda": "#b3282d",
    "pagoda_kv8": "#dd8452",
    "openvino": "#4c72b0",
    "vllm": "#8172b3",
    "llamacpp": "#55a868",
    "transformers": "#8c8c8c",
}
PANELS_A_ROW = 5


def draw(summary: Summary, folder: Path) -> list[Path]:
    """Writes ``peers-<machine>-<shape>.svg`` for every shape of the summary; the files' paths."""
    shapes = sorted({figure.shape for figure in summary.figures})
    return [
        _draw_shape([f for f in summary.figures if f.shape == shape], folder / f"peers-{summary.name}-{shape}.svg")
        for shape in shapes
    ]


def _draw_shape(figures: list[Figure], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pagoda"  # the same figures give the same file
    from matplotlib import pyplot

    present = {(figure.setting, figure.metric) for figure in figures}
    columns = [column for column in COLUMNS if column[:2] in present]
    num_rows = -(-len(columns) // PANELS_A_ROW)
    canvas, panels = pyplot.subplots(
        num_rows, PANELS_A_ROW, figsize=(3 * PANELS_A_ROW, 3.4 * num_rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(columns) :]:
        panel.axis("off")
    for panel, (setting, metric, title) in zip(panels.flat, columns, strict=False):
        _panel(panel, [f for f in figures if (f.setting, f.metric) == (setting, metric)], title)
    canvas.savefig(path, metadata={"Date": None})
    pyplot.close(canvas)
    return path


def _panel(panel: object, figures: list[Figure], title: str) -> None:
    figures = sorted(figures, key=lambda f: (WEIGHTS.index(f.weights), f.engine != OURS, f.engine), reverse=True)
    names = [f"{figure.weights} {figure.engine}" for figure in figures]
    colours = [COLOURS.get(figure.engine, "#444444") for figure in figures]
    bars = panel.barh(names, [figure.median for figure in figures], color=colours)  # type: ignore[attr-defined]
    panel.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)  # type: ignore[attr-defined]
    panel.set_title(f"{title}, tokens/s", fontsize=9)  # type: ignore[attr-defined]
    panel.tick_params(labelsize=7)  # type: ignore[attr-defined]
    panel.margins(x=0.2)  # type: ignore[attr-defined]
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)  # type: ignore[attr-defined]
