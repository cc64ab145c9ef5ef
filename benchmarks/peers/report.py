"""Markdown from a summary: the tables, and in words where Pagoda is behind what is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..machine import in_words, strongest
from . import engines
from .aims import BEST, LIMIT, MILLISECONDS, UNDISTURBED, Verdict, best_peer, holes, verdicts
from .limits import limit
from .reasons import REASONS
from .settings import COLUMNS, WEIGHTS
from .shapes import SHAPES
from .summary import OURS, OURS_TOO, Figure, Summary

TITLES = {
    "qwen05b": "Qwen2.5-0.5B's shape",
    "llama1b": "Llama-3.2-1B's shape",
    "stories15m": "the 15M stories model's shape",
}

SHORT = {"qwen05b": "0.5B", "llama1b": "1B", "stories15m": "15M"}
TITLE = {(setting, metric): title for setting, metric, title in COLUMNS}


def markdown(summaries: Iterable[Summary]) -> str:
    """Everything between the markers of docs/performance.md."""
    return "\n".join(map(_of_machine, summaries))


def _of_machine(summary: Summary) -> str:
    lines = [f"### {summary.machine['cpu']}, {strongest(summary.machine)}", "", _where(summary), ""]
    for shape in SHAPES:
        figures = [figure for figure in summary.figures if figure.shape == shape]
        if figures:
            lines += [f"#### {TITLES.get(shape, shape)}", "", *_rates(figures), "", *_shares(figures), ""]
            lines += [*_hours(figures), ""]
            lines += [
                *_losses(summary, shape),
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
        peers = {column[:2]: best_peer(figures, weights, column[:2]) for column in columns}
        rows = {f"Pagoda, {weights}": ours, f"fastest peer, {weights}": peers}
        for title, row in rows.items():
            cells = [_named(row.get(column[:2])) for column in columns]
            if any(cells):
                lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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


def _hours(figures: list[Figure]) -> Iterator[str]:
    """When what was measured, a row for each hour and kind of weights."""
    columns = _columns(figures)
    by_hour: dict[tuple[str, str], dict[tuple[str, str], list[Figure]]] = {}
    for figure in sorted(figures, key=lambda figure: (figure.at[:13], WEIGHTS.index(figure.weights), figure.engine)):
        by_hour.setdefault((figure.at[:13], figure.weights), {}).setdefault(figure.key[2:4], []).append(figure)
    yield "Measured when; rates of different hours do not compare, a ratio is of repetitions in turn:"
    yield ""
    yield "| weights | hour, UTC | build of Pagoda | cells |"
    yield "| --- | --- | --- | --- |"
    for (at, weights), cells in by_hour.items():
        titles: dict[str, list[str]] = {}  # of the same engines
        for *column, title in columns:
            if measured := cells.get(tuple(column)):
                titles.setdefault(", ".join(figure.engine for figure in measured), []).append(title)
        ours = {f.version for measured in cells.values() for f in measured if f.engine in (OURS, OURS_TOO)}
        words = "; ".join(f"{names}: {', '.join(row)}" for names, row in titles.items())
        yield f"| {weights} | {at.replace('T', ' ')} | {', '.join(sorted(ours))} | {words} |"


def _losses(summary: Summary, shape: str) -> Iterator[str]:
    """Where less was reached than is asked, and the cells without which nobody can tell."""
    found = list(verdicts(summary.figures, shape))
    behind = [
        f"{v.aim.weights} {TITLE[v.aim.column]} {_reached(v)} (asked {_asked(v)})" for v in found if v.met is False
    ]
    open_ = [f"{v.aim.weights} {TITLE[v.aim.column]} ({v.lacks})" for v in found if v.met is None]
    yield "Where Pagoda is behind what is asked: " + ("; ".join(behind) or "nowhere in this table") + "."
    if open_:
        yield ""
        yield f"Not decided: {'; '.join(open_)}."
    missing = list(_missing(summary, shape))
    if missing:
        yield ""
        yield "Not measured, of what decides:"
        yield ""
        yield from missing


def _missing(summary: Summary, shape: str) -> Iterator[str]:
    rows = [(weights, name) for weights in WEIGHTS for name in engines.names() if weights in engines.load(name).FORMS]
    by_columns: dict[tuple[str, str], list[str]] = {}
    for weights, engine, columns in holes(summary.figures, shape, rows):
        whole = not any((f.shape, f.weights, f.engine) == (shape, weights, engine) for f in summary.figures)
        titles = "everything" if whole else ", ".join(TITLE[column] for column in columns)
        by_columns.setdefault((weights, titles), []).append(engine)
    for (weights, titles), names in by_columns.items():
        yield f"- {weights}, {', '.join(names)}: {titles}"


def verdict_tables(summaries: Iterable[Summary]) -> str:
    """A table for each machine: every judged figure that was measured beside what is asked and what it would allow."""
    lines = []
    for summary in summaries:
        lines += [f"### {summary.machine['cpu']}, {strongest(summary.machine)}: asked and reached", ""]
        lines.append(
            "| model, weights | figure | asked | reached | tokens/s | limit | share | at the limit | verdict |"
        )
        lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
        for shape in SHAPES:
            lines += [_verdict(summary, verdict) for verdict in verdicts(summary.figures, shape)]
        lines.append("")
    return "\n".join(lines)


def _verdict(summary: Summary, verdict: Verdict) -> str:
    ours, most = verdict.ours, limit(summary.name, verdict.ours)
    cells = [
        f"{SHORT[verdict.shape]}, {verdict.aim.weights}",
        TITLE[verdict.aim.column],
        _asked(verdict),
        _reached(verdict),
    ]
    cells.append(_number(ours.median) + ("" if ours.num > 1 else " (once)"))
    cells.append("" if most is None else f"{_number(most.rate)}, {most.bound}")
    cells.append("" if most is None else f"{100 * ours.median / most.rate:.0f} %")
    cells.append("" if most is None or verdict.peer is None else f"{most.rate / verdict.peer.median:.2f}")
    reason = REASONS.get((summary.name, verdict.shape, ours.weights, ours.setting, ours.metric, verdict.aim.of))
    words = {True: "met", False: "**short**", None: f"open: {verdict.lacks}"}[verdict.met]
    if verdict.met is False and reason is not None:
        words = f"**short{', reachable' if reason.reachable else ''}**: {reason.text}"
    elif verdict.met and verdict.without:
        words += f" (not in turn: {', '.join(verdict.without)})"
    cells.append(words)
    return f"| {' | '.join(cells)} |"


def _asked(verdict: Verdict) -> str:
    aim = verdict.aim
    if aim.of in (LIMIT, UNDISTURBED):
        return f"{100 * aim.asked:.0f} % of {aim.of}"
    if aim.of == MILLISECONDS:
        return f"{aim.asked} ms"
    return f"{aim.asked:.2f}" if aim.of == BEST else f"{aim.asked:.2f} of {aim.of}"


def _reached(verdict: Verdict) -> str:
    if verdict.measured is None:
        return ""
    if verdict.peer is not None:
        return f"{verdict.measured:.2f} of {verdict.peer.engine}"
    return f"{verdict.measured:.2f} ms" if verdict.aim.of == MILLISECONDS else f"{100 * verdict.measured:.0f} %"
