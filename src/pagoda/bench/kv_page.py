"""A page's price list: read back from its table, and written anew with what was measured now."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..core.errors import ConfigError
from .kv import Price, PriceList
from .kv_report import BYTES, SHARES, SPEEDS, markdown, splice

OF_BYTES = ("held_share", "noted_share", "peak_share", "read_share", "looked_share")
OF_NOTES = ("noted_share", "looked_share")
"""What is measured with speeds, too."""
OF_SPEED = ("prefill_speed", "decode_speed", "policy_share")
_SOME_ROWS = " (some rows: "


def read_page(path: Path, model: str) -> str:
    """A page that has a place for the model's prices. Raises ConfigError for any other."""
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    _place(page, model)
    return page


def with_prices(page: str, found: PriceList, *, add: bool = False) -> str:
    """The page with these prices as its list for the model. What was not measured now, speeds or quality, stays as the
    page has it. ``add``: the other rows stay too, exact's is left as it is, and new ones come last.

    Raises ConfigError when the page has no list that it could be put into.
    """
    old = listed(page, found.model)
    whole = found if old is None else _joined(old, found, add=add)
    note = f"{whole.count} cases a task{_fewer(whole)}, {whole.length} tokens each.\n\n"
    return splice(page, f"prices {found.model}", note + markdown(whole))


def _fewer(found: PriceList) -> str:
    """`` (31 of kl, top1; 18 of topics)``: which metrics have fewer cases."""
    by_count = {num: [m for m, n in found.fewer.items() if n == num] for num in dict.fromkeys(found.fewer.values())}
    said = "; ".join(f"{num} of {', '.join(names)}" for num, names in by_count.items())
    return f" ({said})" if said else ""


def _joined(old: PriceList, new: PriceList, *, add: bool) -> PriceList:
    """What ``with_prices`` writes."""
    judged = bool(new.prices[0].quality)
    known = {one.kv: one for one in old.prices}
    others = [m for m in new.prices[0].quality if m not in (*old.prices[0].quality, *old.left_out)]
    if add and others:
        raise ConfigError(f"the page's list for {new.model} has no column for {', '.join(others)}; leave --tasks out")
    if not judged and (unknown := [one.kv for one in new.prices if one.kv not in known]):
        missing = ", ".join(unknown)
        raise ConfigError(f"the page's list for {new.model} has no quality for {missing}; leave --no-quality out")
    alike = (old.count, old.length) == (new.count, new.length)  # else what other tasks said is of other cases
    mine = [_filled(one, known.get(one.kv), judged=judged, add=add, alike=add or alike) for one in new.prices]
    if judged and not add:
        new = replace(new, prices=mine, speeds_of=_speeds_of(old, new, mine))
        if alike:
            asked = set(new.prices[0].quality) & set(new.higher_is_better)
            new.higher_is_better = old.higher_is_better | new.higher_is_better
            new.fewer |= {metric: num for metric, num in old.fewer.items() if metric not in asked}
            new.left_out |= {metric: why for metric, why in old.left_out.items() if metric not in asked}
        return new
    fresh = {one.kv: one for one in mine if one.kv != "exact" or not judged}  # whose speed shows the noise
    rows = [fresh.pop(one.kv, one) for one in old.prices]
    rows += fresh.values()
    gone = {kv: why for kv, why in (old.not_priced | new.not_priced).items() if kv not in known and kv not in fresh}
    return replace(old, prices=rows, not_priced=gone, speeds_of=_speeds_of(old, new, rows))


def _speeds_of(old: PriceList, new: PriceList, rows: Sequence[Price]) -> str:
    """What both say of the speeds, the newest first, where some of the page's ``rows`` were not measured now."""
    measured = {one.kv for one in new.prices if one.decode_speed is not None}
    kept = any(one.decode_speed is not None and one.kv not in measured for one in rows)
    if not new.speeds_of or not kept:
        return new.speeds_of or old.speeds_of
    last, _, others = (old.speeds_of or "not noted").removesuffix(")").partition(_SOME_ROWS)
    before = [said for said in (last, *others.split("; ")) if said and said != new.speeds_of]
    return new.speeds_of + (f"{_SOME_ROWS}{'; '.join(before)})" if before else "")


def _filled(one: Price, old: Price | None, *, judged: bool, add: bool, alike: bool) -> Price:
    """The price with what was not measured taken from the page's row. ``alike``: what other tasks said of as many cases
    too; a row that is added among others has the bytes of theirs, which are of all tasks.
    """
    if old is None:
        return one
    taken = {name: getattr(old, name) for name in OF_SPEED if getattr(one, name) is None}
    if one.decode_speed is None:
        taken["noisy"] = old.noisy
    if judged and alike:
        taken["quality"] = old.quality | one.quality
        if add and old.quality.keys() - one.quality.keys():
            taken |= {name: getattr(old, name) for name in OF_BYTES if getattr(old, name) is not None}
    if not judged:
        kept = [name for name in OF_BYTES if name not in OF_NOTES or getattr(one, name) is None]
        taken |= {name: getattr(old, name) for name in kept} | {"quality": old.quality}
    return replace(one, **taken)


def accept_exact(old: PriceList) -> Callable[[Price], None]:
    """Raises ConfigError for a price of exact, measured now, that is not the one of this list: other texts, or another
    build of the model, beside which nothing can be put.
    """

    def accept(exact: Price) -> None:
        for metric, was in old.prices[0].quality.items():
            now = exact.quality.get(metric, was)
            one_case = 1 / old.count if metric in SHARES else 0.0  # which rounding may turn on another machine
            if abs(now - was) > one_case + 0.01 * max(1.0, was):
                raise ConfigError(
                    f"exact's {metric.replace('_', ' ')} is {now:.3g} here and {was:.3g} in the page's list for "
                    f"{old.model}: give the --text and --data that it was made with (Makefile: prices)"
                )

    return accept


def listed(page: str, model: str) -> PriceList | None:
    """The prices that a page lists for a model, rounded as they stand there; None where the place is empty, or has a
    table with other columns of bytes.

    Raises ConfigError when the page has no place for the model.
    """
    lines = _place(page, model).strip("\n").split("\n")
    titles = next((_cells(line) for line in lines if line.startswith("| kv ")), [])
    if titles[1 : 1 + len(BYTES)] != list(BYTES):
        return None
    count, length = (int((re.findall(what, lines[0]) or [0])[0]) for what in (r"^\d+", r"(\d+) tokens"))
    fewer = {m: int(num) for num, names in re.findall(r"[(;] ?(\d+) of ([^;)]+)", lines[0]) for m in names.split(", ")}
    metrics = [title.replace(" ", "_") for title in titles[1 + len(BYTES) : -len(SPEEDS)]]
    prices = [_row(_cells(line), metrics) for line in lines if line.startswith("| `")]
    higher = {metric: metric not in ("kl", "perplexity") for metric in metrics}
    left_out = dict(_reason(line, "Left out: ") for line in lines if line.startswith("Left out: "))
    not_priced = dict(_reason(line, "Not priced: ") for line in lines if line.startswith("Not priced: "))
    speeds_of = next((line.removeprefix("Speeds: ")[:-1] for line in lines if line.startswith("Speeds: ")), "")
    return PriceList(model, length, count, prices, higher, left_out, not_priced, speeds_of, fewer)


def all_listed(page: str) -> list[PriceList]:
    """Of every model that the page lists prices of, in its order."""
    found = (listed(page, model) for model in re.findall(r"<!-- prices (\S+) -->", page))
    return [one for one in found if one is not None]


def _row(cells: list[str], metrics: Sequence[str]) -> Price:
    kv, numbers = cells[0].strip("`"), [_number(cell) for cell in cells[1:]]
    first, last = len(BYTES), len(numbers) - len(SPEEDS)
    budget = re.search(r"budget=([\d.]+)", kv)
    return Price(
        kv,
        re.sub(r"\(budget=[\d.]+\)", "", kv),
        None if budget is None else float(budget[1]),
        **dict(zip(OF_BYTES, numbers[:first], strict=True)),
        quality={m: x for m, x in zip(metrics, numbers[first:last], strict=True) if x is not None},
        **dict(zip(OF_SPEED, numbers[last:], strict=True)),
        noisy=[title for title, cell in zip(SPEEDS, cells[-len(SPEEDS) :], strict=True) if cell.startswith("~")],
    )


def _number(cell: str) -> float | None:
    if cell == "-":
        return None
    return float(cell.strip("~%x")) / (100 if cell.endswith("%") else 1)


def _cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def _reason(line: str, begin: str) -> tuple[str, str]:
    """``("recall", "why")`` of "Left out: recall (why)."."""
    name, _, why = line.removeprefix(begin).partition(" (")
    return name.strip("`"), why.removesuffix(").")


def _place(page: str, model: str) -> str:
    """What stands in a page's place for the model's list."""
    splice(page, f"prices {model}", "")
    begin, end = f"<!-- prices {model} -->", f"<!-- end prices {model} -->"
    return page.partition(begin)[2].partition(end)[0]
