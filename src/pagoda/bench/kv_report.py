"""The price list as markdown and as a picture."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..kv.policies import POLICIES
from .kv import Price, PriceList, front, losers
from .pyplot import pyplot

SHARES = ("top1", "recall", "multi_key", "multi_query", "multi_turn", "copying", "counting", "topics")
JUDGED = ("kl", "perplexity", "recall", "multi_key", "multi_turn")


def markdown(found: PriceList) -> str:
    """A table with one row a price, sorted by method and budget, and what was left out."""
    metrics = [m for m in found.prices[0].quality if m not in found.left_out]
    titles = ["kv", "KV held", "peak", *(m.replace("_", " ") for m in metrics), "prefill", "decode", "deciding"]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for one in found.prices:
        cells = [f"`{one.kv}`", f"{one.held_share:.0%}", f"{one.peak_share:.0%}"]
        cells += [_cell(metric, one.quality[metric]) for metric in metrics]
        cells += [f"{one.prefill_speed:.2f}x", f"{one.decode_speed:.2f}x", f"{one.policy_share:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\nLeft out: {metric} ({why})." for metric, why in found.left_out.items()]
    lost = _losers(found)
    return "\n".join([*lines, "", *lost] if lost else lines)


def _losers(found: PriceList) -> list[str]:
    """A line for each metric that some method does not win against the controls."""
    lines = []
    for metric in JUDGED:
        lost = losers(found, metric) if metric in found.prices[0].quality and metric not in found.left_out else []
        if lost:
            names = ", ".join(f"`{kv}`" for kv in lost)
            lines.append(
                f"- No better than `recent` or `random` at the same budget, by {metric.replace('_', ' ')}: {names}."
            )
    return lines


def _cell(metric: str, value: float) -> str:
    return f"{value:.0%}" if metric in SHARES else f"{value:.3f}" if metric == "kl" else f"{value:.2f}"


def methods_table() -> str:
    """Every registered policy: what it does, its parameters, its paper."""
    lines = ["| name | what stays | parameters | paper |", "| --- | --- | --- | --- |"]
    for name, policy in POLICIES.items():
        fields = dataclasses.fields(policy)  # type: ignore[arg-type]
        parameters = ", ".join(f"{field.name}={field.default!r}" for field in fields)
        paper = getattr(policy, "paper", "")
        link = f"[{paper.rpartition('/')[2]}]({paper})" if paper else ""
        module = __import__(policy.__module__, fromlist=["_"])
        summary = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        lines.append(f"| `{name}` | {summary} | {parameters} | {link} |")
    return "\n".join(lines)


def splice(page: str, name: str, text: str) -> str:
    """The page with what stands between ``<!-- name -->`` and ``<!-- end name -->`` replaced.

    Raises ConfigError when the page has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if begin not in page or end not in page:
        raise ConfigError(f"the page has no place for {name!r}: it needs the lines {begin} and {end}")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def added(page: str, found: PriceList) -> str:
    """The page with these prices among those of its list for the model: rows of the same ``kv`` are replaced (exact's
    stays as it is, the measure of all others), and who loses to the controls is said anew of the whole list.

    Raises ConfigError when the page has no list for the model, or one with other columns.
    """
    old = _place(page, found.model).strip("\n").split("\n")
    new = markdown(found).split("\n")
    if new[0] not in old:
        raise ConfigError(f"the page's list for {found.model} has other columns; give the tasks that it was made with")
    mine = {_kv_of(row): row for row in new if row.startswith("| `") and _kv_of(row) != "`exact`"}
    lines = []
    for line in old:
        if line.startswith("| `"):
            line = mine.pop(_kv_of(line), line)
        elif mine and lines and lines[-1].startswith("| `"):
            lines += mine.values()
            mine = {}
        if not line.startswith("- No better"):
            lines.append(line)
    text = "\n".join([*lines, *mine.values()]).rstrip("\n")
    name = f"prices {found.model}"
    lost = _losers(listed(splice(page, name, text), found.model))
    return splice(page, name, "\n".join([text, "", *lost]) if lost else text)


def listed(page: str, model: str) -> PriceList:
    """The prices that a page lists for a model, rounded as they stand there.

    Raises ConfigError when the page has no list for the model.
    """
    lines = _place(page, model).strip("\n").split("\n")
    count, length = (int(n) for n in [*re.findall(r"\d+", lines[0]), 0, 0][:2])
    titles = next(line for line in lines if line.startswith("| kv ")).strip("| ").split(" | ")
    metrics = [title.replace(" ", "_") for title in titles[3:-3]]
    prices = []
    for line in lines:
        if line.startswith("| `"):
            kv, *cells = line.strip("| ").split(" | ")
            held, peak, *rest = (float(c.rstrip("%x")) / (100 if c.endswith("%") else 1) for c in cells)
            budget = re.search(r"budget=([\d.]+)", kv)
            method = re.sub(r"\(budget=[\d.]+\)", "", kv.strip("`"))
            prices.append(
                Price(
                    kv.strip("`"), method, None if budget is None else float(budget[1]), held, peak,
                    dict(zip(metrics, rest, strict=False)), *rest[-3:],
                )
            )  # fmt: skip
    higher = {metric: metric not in ("kl", "perplexity") for metric in metrics}
    return PriceList(model, length, count, prices, higher)


def _place(page: str, model: str) -> str:
    """What stands in a page's place for the model's list."""
    begin, end = f"<!-- prices {model} -->", f"<!-- end prices {model} -->"
    if begin not in page or end not in page:
        raise ConfigError(f"the page has no place for 'prices {model}': it needs the lines {begin} and {end}")
    return page.partition(begin)[2].partition(end)[0]


def _kv_of(row: str) -> str:
    return row.split(" | ")[0].removeprefix("| ")


def plot(found: PriceList, path: Path) -> None:
    """Quality over bytes held, two panels with the Pareto front drawn. Raises ConfigError without matplotlib."""
    plt = pyplot()
    metrics = [m for m in ("kl", "recall", "multi_turn") if m in found.higher_is_better and m not in found.left_out]
    metrics = metrics or [m for m in found.prices[0].quality if m not in found.left_out][:1]
    figure, axes = plt.subplots(1, len(metrics), figsize=(6.2 * len(metrics), 5), squeeze=False)
    methods = sorted({one.method for one in found.prices})
    colors = {method: plt.get_cmap("tab20")(index % 20) for index, method in enumerate(methods)}
    for axis, metric in zip(axes[0], metrics, strict=True):
        for method in methods:
            mine = sorted((p for p in found.prices if p.method == method), key=lambda p: p.held_share)
            marker = "s" if method in ("recent", "random") else "o^vD"[methods.index(method) // 20]
            axis.plot(*_points(mine, metric), marker=marker, color=colors[method], linewidth=0.6, label=method)
        best = [p for p in front(found, metric) if metric != "kl" or p.quality[metric] > 0]
        axis.plot(*_points(best, metric), color="black", linewidth=2, alpha=0.5, zorder=0, label="front")
        for one in best:
            axis.annotate(one.kv, (one.held_share, one.quality[metric]), (4, 4), textcoords="offset points", fontsize=6)
        axis.set_xlabel("KV bytes held, as a share of exact")
        axis.set_title(metric.replace("_", " ") + (" (nats, lower is better)" if metric == "kl" else ""))
        if metric == "kl":
            axis.set_yscale("symlog", linthresh=1e-3)
        axis.grid(alpha=0.3)
    legend = axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), ncol=1 + len(methods) // 24)
    legend.set_in_layout(False)
    figure.suptitle(f"{found.model}: {found.count} cases a task of {found.length} tokens")
    figure.tight_layout()
    legend.set_in_layout(True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def _points(prices: Sequence[Price], metric: str) -> tuple[list[float], list[float]]:
    return [p.held_share for p in prices], [p.quality[metric] for p in prices]
