"""Markdown from lines: the tables, who is fastest at how many tokens, and in words where Pagoda is behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..machine import in_words, strongest
from .results import Line, Results
from .timing import REFERENCE

CLEAR = 1.03
"""Of two ways that differ by less neither is called faster: medians of one run differ by as much from another's."""

TITLES = {
    "linear": "Products with packed weights",
    "ternary": "Ternary products",
    "experts": "Experts of a mixture",
    "embedding": "Embedding",
    "attention": "Attention",
    "rotation": "Rotary positions and KV write",
    "moves": "Page moves and compaction",
    "norms": "Norms",
    "sampling": "Sampling",
}


def markdown(found: Iterable[Results]) -> str:
    """Everything between the marks of docs/ops.md."""
    return "\n".join(map(_of_machine, found))


def _of_machine(results: Results) -> str:
    lines = [f"## {results.machine['cpu']}, {strongest(results.machine)}", "", _where(results), ""]
    lines += [*_behind(results.lines), ""]
    lines += [f"![How much longer other ways take]({_image(results, 'ratios')})", ""]
    for op, title in TITLES.items():
        mine = [line for line in results.lines if line.op == op]
        if mine:
            lines += [f"### {title}", ""]
            if op == "linear":
                lines += [*crossover(mine), "", f"![Rates by number of tokens]({_image(results, 'linear')})", ""]
            for table in dict.fromkeys(line.table for line in mine):
                lines += [f"{table}:", "", *_table([line for line in mine if line.table == table]), ""]
    return "\n".join(lines)


def _image(results: Results, what: str) -> str:
    return f"img/ops-{results.name}-{what}.svg"


def _where(results: Results) -> str:
    clock = "time" if results.clock == "wall" else "processor time"
    reads = sorted(limit["read"] / 1e9 for limit in results.limits)
    rates = {kind: max(limit[kind] for limit in results.limits) / 1e9 for kind in ("bf16", "int8", "fp32")}
    return (
        f"{in_words(results.machine)}; {results.threads} threads, {clock}, torch {results.torch}, "
        f"{results.when[0][:10]} to {results.when[1][:10]}. Read bandwidth of the runs {reads[0]:.0f} to "
        f"{reads[-1]:.0f} GB/s; torch's products of 2048 x 2048 matrices {rates['bf16']:.0f} Gop/s in bf16, "
        f"{rates['int8']:.0f} in int8, {rates['fp32']:.0f} in fp32."
    )


def others(lines: Iterable[Line]) -> list[str]:
    """Ways beside ours, in order, the reference last."""
    names = dict.fromkeys(name for line in lines for name in line.ways if name != "pagoda")
    return sorted(names, key=lambda name: name == REFERENCE)


def head(line: Line, ways: list[str]) -> list[str]:
    """A table's first two lines."""
    heads = [*line.about, "pagoda, us", *(f"{way}, us | {way} / pagoda" for way in ways), "GB/s", "Gop/s", "share"]
    return [f"| {' | '.join(heads)} |", f"|{' ---: |' * (len(line.about) + 4 + 2 * len(ways))}"]


def row(line: Line, ways: list[str]) -> str:
    """Medians in microseconds and in brackets the spread, in percent."""
    cells = [*map(str, line.about.values()), _taken(line, "pagoda")]
    for way in ways:
        cells += [_taken(line, way), _number(line.ratio(way))] if way in line.ways else ["-", "-"]
    operations = _number(line.num_ops / line.ours / 1e9) if line.num_ops else "-"
    return f"| {' | '.join([*cells, f'{line.num_bytes / line.ours / 1e9:.1f}', operations, f'{line.share:.2f}'])} |"


def _table(lines: list[Line]) -> list[str]:
    ways = others(lines)
    return [*head(lines[0], ways), *(row(line, ways) for line in lines)]


def _taken(line: Line, way: str) -> str:
    taken = line.ways[way]
    text = _number(taken.median * 1e6)
    return f"{text} ({100 * taken.spread:.0f})" if taken.rounds > 1 else f"{text} (once)"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}" if value < 2 else f"{value:.1f}"


def best_other(line: Line) -> str | None:
    """The fastest way that is not ours."""
    return min((way for way in line.ways if way not in ("pagoda", REFERENCE)), key=line.ratio, default=None)


def crossover(lines: list[Line]) -> Iterator[str]:
    """For each matrix and number of tokens how long the best other way takes beside ours; its name if that is less."""
    counts = list(dict.fromkeys(line.about["tokens"] for line in lines))
    yield f"Time of the fastest other way / Pagoda's, by tokens; named where it is faster by more than {CLEAR - 1:.0%}:"
    yield ""
    yield f"| weights | {' | '.join(map(str, counts))} |"
    yield "| --- |" + " ---: |" * len(counts)
    for table in dict.fromkeys(line.table for line in lines):
        by_count = {line.about["tokens"]: line for line in lines if line.table == table}
        cells = [_cross(by_count[count]) if count in by_count else "" for count in counts]
        yield f"| {table} | {' | '.join(cells)} |"


def _cross(line: Line) -> str:
    way = best_other(line)
    if way is None:
        return ""
    return f"**{line.ratio(way):.2f}** {way}" if line.ratio(way) * CLEAR < 1 else f"{line.ratio(way):.2f}"


def _behind(lines: list[Line]) -> Iterator[str]:
    """From the worst; an op that has no other way beside it is left out."""
    slower = []
    num = 0
    for line in lines:
        way = best_other(line)
        num += way is not None
        if way is not None and line.ratio(way) * CLEAR < 1:
            about = ", ".join(f"{key} {value}" for key, value in line.about.items())
            slower.append((line.ratio(way), f"{line.table}, {about}: {line.ratio(way):.2f} by {way}"))
    if slower:
        yield f"Where another way is faster than Pagoda ({len(slower)} of {num} lines):"
        yield ""
        yield from (f"- {text}" for _, text in sorted(slower))
    else:
        yield f"In none of {num} lines is another way faster than Pagoda."
