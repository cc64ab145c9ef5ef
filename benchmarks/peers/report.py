"""Markdown from a summary: the tables, and in words where Pagoda is behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..machine import in_words, strongest
from .settings import COLUMNS, WEIGHTS
from .shapes import SHAPES
from .summary import OURS, OURS_TOO, Figure, Summary

TITLES = {
    "qwen05b": "Qwen2.5-0.5B's shape",
    "llama1b": "Llama-3.2-1B's shape",
    "stories15m": "the 15M stories model's shape",
}


def markdown(summaries: Iterable[Summary]) -> str:
    """Everything between the markers of docs/performance.md."""
    return "\n".join(map(_of_machine, summaries))


def _of_machine(summary: Summary) -> str:
    lines = [f"### {summary.machine['cpu']}, {strongest(summary.machine)}", "", _where(summary), ""]
    for shape in SHAPES:
        figures = [figure for figure in summary.figures if figure.shape == shape]
        if figures:
            lines += [f"#### {TITLES.get(shape, shape)}", "", *_rates(figures), "", *_shares(figures), ""]
            lines += [
                *_losses(figures),
                "",
                f"![Tokens a second of every engine, by setting](img/peers-{summary.name}-{shape}.svg)",
                "",
            ]
    if summary.absent:
        lines += ["Not measured:", "", *(f"- {cell}: {why}" for cell, why in sorted(summary.absent.items())), ""]
    return "\n".join(lines)


def short(summary: Summary, shape: str = "qwen05b") -> str:
    """README's table: Pagoda and the fastest peer, one model."""
    figures = [figure for figure in summary.figures if figure.shape == shape]
    columns = _columns(figures)
    lines = [_where(summary), "", "| tokens/s | " + " | ".join(title for *_, title in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for weights in WEIGHTS:
        ours = {(f.setting, f.metric): f for f in figures if f.weights == weights and f.engine == OURS}
        peers = {column[:2]: _best_peer(figures, weights, column[:2]) for column in columns}
        rows = {f"Pagoda, {weights}": ours, f"fastest peer, {weights}": peers}
        for title, row in rows.items():
            cells = [_named(row.get(column[:2])) for column in columns]
            if any(cells):
                lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _best_peer(figures: list[Figure], weights: str, column: tuple[str, str]) -> Figure | None:
    peers = [f for f in figures if f.weights == weights and (f.setting, f.metric) == column]
    peers = [f for f in peers if f.engine not in (OURS, OURS_TOO)]
    return max(peers, key=lambda f: f.median, default=None)


def _named(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return _number(figure.median) + ("" if figure.engine == OURS else f" {figure.engine}")


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _where(summary: Summary) -> str:
    reads = sorted(figure.read_gb_s for figure in summary.figures)
    trips = sorted(figure.round_trip_ns for figure in summary.figures)
    versions = ", ".join(f"{engine} {version}" for engine, version in sorted(summary.versions.items()))
    return (
        f"{in_words(summary.machine)}; {summary.first[:10]} to {summary.last[:10]}. "
        f"Read bandwidth while measuring {reads[0]:.0f} to {reads[-1]:.0f} GB/s, cache-line round trip "
        f"{trips[0]:.0f} to {trips[-1]:.0f} ns. {versions}."
    )


def _by_row(figures: list[Figure]) -> Iterator[tuple[str, str, dict[tuple[str, str], Figure]]]:
    """(weights, engine, {(setting, metric): figure}), Pagoda first for each kind of weights."""
    rows: dict[tuple[str, str], dict[tuple[str, str], Figure]] = {}
    for figure in figures:
        rows.setdefault((figure.weights, figure.engine), {})[figure.setting, figure.metric] = figure
    for weights, engine in sorted(rows, key=lambda row: (WEIGHTS.index(row[0]), row[1] != OURS, row[1])):
        yield weights, engine, rows[weights, engine]


def _columns(figures: list[Figure]) -> list[tuple[str, str, str]]:
    present = {(figure.setting, figure.metric) for figure in figures}
    return [column for column in COLUMNS if column[:2] in present]


def _rates(figures: list[Figure]) -> Iterator[str]:
    columns = _columns(figures)
    yield "Tokens a second, median (spread in percent of it; *once*: a single undisturbed repetition):"
    yield ""
    yield "| weights | engine | " + " | ".join(title for *_, title in columns) + " | peak RSS, MiB |"
    yield "| --- | --- |" + " ---: |" * (len(columns) + 1)
    best = {(f.weights, f.setting, f.metric): max(_rivals(figures, f), key=lambda g: g.median).engine for f in figures}
    for weights, engine, row in _by_row(figures):
        cells = [_rate(row.get(column[:2]), best) for column in columns]
        rss = max(figure.peak_rss_bytes for figure in row.values()) >> 20
        yield f"| {weights} | {engine} | " + " | ".join(cells) + f" | {rss} |"


def _rivals(figures: list[Figure], figure: Figure) -> list[Figure]:
    """All engines' figures of the same cell."""
    cell = (figure.weights, figure.setting, figure.metric)
    return [other for other in figures if (other.weights, other.setting, other.metric) == cell]


def _rate(figure: Figure | None, best: dict[tuple[str, str, str], str]) -> str:
    if figure is None:
        return ""
    text = _number(figure.median)
    if best[figure.weights, figure.setting, figure.metric] == figure.engine:
        text = f"**{text}**"
    return f"{text} ({100 * figure.spread:.0f})" if figure.num > 1 else f"{text} (once)"


def _shares(figures: list[Figure]) -> Iterator[str]:
    columns = _columns(figures)
    yield "Share of the roofline, percent (bytes / measured bandwidth or operations / measured GEMM rate):"
    yield ""
    yield "| weights | engine | " + " | ".join(title for *_, title in columns) + " |"
    yield "| --- | --- |" + " ---: |" * len(columns)
    for weights, engine, row in _by_row(figures):
        cells = [f"{100 * row[column[:2]].share:.0f}" if column[:2] in row else "" for column in columns]
        yield f"| {weights} | {engine} | " + " | ".join(cells) + " |"


def _losses(figures: list[Figure]) -> Iterator[str]:
    """Pagoda over the fastest peer of every cell, from the worst; a kind of weights that it does not have is named."""
    titles = {column[:2]: column[2] for column in COLUMNS}
    ratios = []
    ours = {(f.weights, f.setting, f.metric) for f in figures if f.engine == OURS}
    for weights, setting, metric in sorted(ours):
        best = _best_peer(figures, weights, (setting, metric))
        if best is not None and best.ratio is not None:
            ratios.append((best.ratio, f"{weights} {titles[setting, metric]}: {best.ratio:.2f} of {best.engine}"))
    behind = [text for ratio, text in sorted(ratios) if ratio < 1]
    ahead = [text for ratio, text in sorted(ratios, reverse=True) if ratio >= 1]
    yield "Where Pagoda is behind the best peer: " + ("; ".join(behind) or "nowhere in this table") + "."
    yield ""
    yield "Where it is ahead: " + ("; ".join(ahead) or "nowhere in this table") + "."
    for weights in sorted({f.weights for f in figures} - {cell[0] for cell in ours}, key=WEIGHTS.index):
        yield ""
        yield f"With {weights} weights only the peers were measured."
    missing = [f"{weights} weights" for weights in WEIGHTS if weights not in {f.weights for f in figures}]
    missing += [title for *column, title in COLUMNS if tuple(column) not in {(f.setting, f.metric) for f in figures}]
    if missing:
        yield ""
        yield f"Not measured yet: {', '.join(missing)}."
