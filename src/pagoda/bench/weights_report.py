"""The price list of weight formats as a markdown table and a drawing: quality over bytes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from ..core.errors import ConfigError
from ..core.units import format_bytes, parse_bytes
from .weights import Price, PriceList

BEGIN, END = "<!-- prices of {model} -->", "<!-- end of prices -->"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 320, 60, 40


def markdown(found: PriceList) -> str:
    """A table, one row a format."""
    head = "| format | bytes | bits per weight | perplexity | KL, nats | top-1 | recall | tokens/s | beside default |"
    rule = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    return "\n".join([head, rule, *(_row(p) for p in found.prices)])


def _row(p: Price) -> str:
    measured = (p.perplexity, ".3f"), (p.kl, ".4f"), (p.top1, ".3f"), (p.recall, ".2f")
    measured += (p.tokens_per_second, ".0f"), (p.speed, ".2f")
    numbers = ["-" if value is None else format(value, digits) for value, digits in measured]
    cells = f"`{p.format}`", format_bytes(p.num_bytes), f"{p.bits_per_weight:.2f}", *numbers
    return f"| {' | '.join(cells)} |"


def rewrite(page: Path, found: PriceList) -> None:
    """Puts the table between the page's markers. Raises ConfigError where they are missing."""
    before, _, after = around_table(page, found.model)
    page.write_text(f"{before}\n{markdown(found)}\n{after}", encoding="utf-8")


def added(page: Path, found: PriceList) -> PriceList:
    """The page's list with these prices in it: those of the same name are replaced, in what was measured of them.

    Raises ConfigError where the page has no list of that model.
    """
    new = {price.format: price for price in found.prices}
    rows = [line for line in around_table(page, found.model)[1].splitlines() if line.startswith("| `")]
    prices = [_together(old, new.pop(old.format, None)) for old in map(_read_row, rows)]
    return replace(found, prices=[*prices, *new.values()])


def _together(old: Price, new: Price | None) -> Price:
    if new is None:
        return old
    kept = {f.name: getattr(old, f.name) for f in fields(Price) if getattr(new, f.name) is None}
    return replace(new, **kept)


def _read_row(row: str) -> Price:
    name, size, *rest = (cell.strip() for cell in row.strip("| ").split("|"))
    bits, *numbers = (None if cell == "-" else float(cell) for cell in rest)
    return Price(name.strip("`"), parse_bytes(size), bits or 0.0, *numbers)


def around_table(page: Path, model: str) -> tuple[str, str, str]:
    """What is before the table, to the line that begins it, the table, and what follows, from the line that ends it."""
    begin = BEGIN.format(model=Path(model).name)
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{page}: cannot be read ({error.strerror})") from error
    before, at, rest = text.partition(begin)
    table, end, after = rest.partition(END)
    if not at or not end:
        raise ConfigError(f"{page}: has no lines {begin!r} and {END!r} to put the prices between")
    return before + begin, table, END + after


def drawing(found: PriceList) -> str:
    """SVG: KL divergence (down is better) over bytes, a dot a format."""
    lossy = [(p, p.kl) for p in found.prices if p.kl]
    most_bytes = max((p.num_bytes for p in found.prices), default=1)
    most_kl = max((kl for _, kl in lossy), default=1.0)
    dots = "".join(_dot(p, p.num_bytes / most_bytes, kl / most_kl) for p, kl in lossy)
    axes = (
        f'<path d="M{_LEFT} 10V{_HEIGHT - _BOTTOM}H{_WIDTH - 10}" fill="none" stroke="#888"/>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}">bytes of weights, to {format_bytes(most_bytes)}</text>'
        f'<text x="8" y="20">KL, to {most_kl:.3f} nats</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{axes}{dots}</svg>\n'
    )


def _dot(p: Price, bytes_share: float, kl_share: float) -> str:
    x = _LEFT + (_WIDTH - _LEFT - 120) * bytes_share
    # The square root spreads the good formats, which would all lie on the axis.
    y = (_HEIGHT - _BOTTOM) - (_HEIGHT - _BOTTOM - 30) * kl_share**0.5
    return (
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="#36c"/><text x="{x + 7:.0f}" y="{y + 4:.0f}">{p.format}</text>'
    )
