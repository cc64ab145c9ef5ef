"""The price list as markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.calls import parse_calls
from ..core.errors import ConfigError
from ..kv.policies import POLICIES
from .kv import Price, PriceList
from .kv_judge import CONTROLS, front, standings
from .pyplot import pyplot

SHARES = ("top1", "recall", "multi_key", "multi_query", "multi_turn", "copying", "counting", "topics")
JUDGED = ("kl", "perplexity", "recall", "multi_key", "multi_query", "multi_turn")
KINDS = {
    "eviction": ("o", "tab:blue"), "codec": ("^", "tab:orange"), "selection": ("v", "tab:green"),
    "control": ("s", "tab:red"), "exact": ("*", "black"),
}  # fmt: skip
BYTES, SPEEDS = ("KV held", "noted", "peak", "KV read", "marks read"), ("prefill", "decode", "deciding, moving")


def markdown(found: PriceList) -> str:
    """A table with one row a price, in the order of the list, what was left out, and who does not beat the controls."""
    metrics = [m for m in found.prices[0].quality if m not in found.left_out]
    titles = ["kv", *BYTES, *(m.replace("_", " ") for m in metrics), *SPEEDS]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for one in found.prices:
        cells = [_share(x) for x in (one.held_share, one.noted_share, one.peak_share, one.read_share, one.looked_share)]
        cells += [_cell(metric, one.quality.get(metric)) for metric in metrics]
        cells += [_speed(one, part, x) for part, x in (("prefill", one.prefill_speed), ("decode", one.decode_speed))]
        cells += ["-" if one.policy_share is None else f"{one.policy_share:.1%}"]
        lines.append("| " + " | ".join([f"`{one.kv}`", *cells]) + " |")
    lines += [f"\nLeft out: {metric} ({why})." for metric, why in found.left_out.items()]
    lines += [f"\nNot priced: `{kv}` ({why})." for kv, why in found.not_priced.items()]
    lines += [f"\nSpeeds: {found.speeds_of}."] if found.speeds_of else []
    lost = _losers(found)
    return "\n".join([*lines, "", *lost] if lost else lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _speed(one: Price, part: str, value: float | None) -> str:
    return "-" if value is None else f"{'~' if part in one.noisy else ''}{value:.2f}x"


def _losers(found: PriceList) -> list[str]:
    """Two lines for each metric: who is worse than the controls by it, and whom the cases do not tell from them."""
    lines = []
    for metric in JUDGED:
        known = metric in found.prices[0].quality and metric not in found.left_out
        places, by = standings(found, metric) if known else {}, metric.replace("_", " ")
        for place, said in ((-1, "Worse than"), (0, "As good as")):
            if names := ", ".join(f"`{kv}`" for kv, mine in places.items() if mine == place):
                lines.append(f"- {said} `recent` or `random` with as many bytes read, by {by}: {names}.")
    return lines


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if metric in SHARES else f"{value:.3f}" if metric == "kl" else f"{value:.2f}"


def plot(found: PriceList, path: Path) -> bool:
    """Quality over bytes held, a panel for each of some metrics, with the Pareto front drawn and named; False, and no
    file, where all are left out.

    Raises ConfigError without matplotlib.
    """
    metrics = [m for m in ("kl", "recall", "multi_turn") if m in found.higher_is_better and m not in found.left_out]
    metrics = metrics or [m for m in found.prices[0].quality if m not in found.left_out][:1]
    if not metrics:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(1, len(metrics), figsize=(8 * len(metrics), 5.6), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for kind, (marker, color) in KINDS.items():
            mine = [p for p in found.prices if _kind(p.kv) == kind]
            axis.plot(*_points(mine, metric), marker, color=color, alpha=0.7, markersize=5, label=kind)
        best = [p for p in front(found, metric) if metric != "kl" or p.quality[metric] > 0]
        axis.plot(*_points(best, metric), color="black", linewidth=2, alpha=0.5, zorder=0, label="front")
        axis.set_xlabel("KV bytes held, as a share of exact")
        axis.set_title(metric.replace("_", " ") + (" (nats, lower is better)" if metric == "kl" else ""))
        if metric == "kl":
            axis.set_yscale("symlog", linthresh=1e-3)
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        _name(axis, best, metric)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="lower center", ncol=len(labels))
    cases = sorted({found.cases_of(metric) for metric in metrics})
    figure.suptitle(f"{found.model}: {' and '.join(map(str, cases))} cases a task of {found.length} tokens")
    figure.tight_layout(rect=(0, 0.05, 1, 1), w_pad=8)  # room for the names
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
    return True


def _name(axis: Any, prices: Sequence[Price], metric: str) -> None:
    """Names right of the panel, one under the other, each with a line to its point."""
    axis.autoscale_view()  # limits are settled late otherwise
    at = axis.transData + axis.transAxes.inverted()
    heights = [(at.transform((one.held_share, one.quality[metric]))[1], one) for one in prices]
    last = 1.04
    for left, (height, one) in enumerate(sorted(heights, key=lambda pair: -pair[0])):
        last = max(min(height, last - 0.042), 0.042 * (len(heights) - 1 - left))
        axis.annotate(
            one.kv, (one.held_share, one.quality[metric]), (1.02, last), textcoords="axes fraction", fontsize=7,
            va="center", arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "gray", "alpha": 0.7},
        )  # fmt: skip


def _kind(kv: str) -> str:
    """Which of ``KINDS``, by the stage of what stands last."""
    name = parse_calls(kv.replace("-", "_"), option="kv", example="snapkv")[-1].name
    if name in CONTROLS:
        return "control"
    policy = POLICIES.get(name) if name in POLICIES.names() else None
    stage = str(getattr(policy, "stage", "codec"))
    return "eviction" if stage == "allocator" else stage


def _points(prices: Sequence[Price], metric: str) -> tuple[list[float | None], list[float]]:
    judged = [p for p in prices if metric in p.quality]
    return [p.held_share for p in judged], [p.quality[metric] for p in judged]


def plot_heat(found: PriceList, path: Path) -> bool:
    """Recall by distance and depth, a row of cells for every method, evictions beside selections and codecs; False, and
    no file, where it was not asked for.
    """
    priced = [one for one in found.prices if one.heat]
    if not priced or "recall" in found.left_out:
        return False
    plt = pyplot()
    evicting = [one for one in priced if _kind(one.kv) in ("exact", "control", "eviction")]
    panels = [part for part in (evicting, [one for one in priced if one not in evicting]) if part]
    places, tallest = list(priced[0].heat), max(map(len, panels))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(len(panels) * (2.6 + 0.5 * len(places)), 1.4 + 0.18 * tallest), squeeze=False
    )
    for axis, part in zip(axes[0], panels, strict=True):
        cells = [[one.heat[place] for place in places] for one in part]
        image = axis.imshow(cells, "viridis", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(places)), [place.replace("/", "\nat ") for place in places], fontsize=7)
        axis.set_yticks(range(len(part)), [one.kv for one in part], fontsize=7)
        axis.set_ylim(tallest - 0.5, -0.5)  # rows of both as high
        axis.set_xlabel("tokens from fact to question, and where the fact stands", fontsize=8)
    figure.suptitle(f"{found.model}: recall of a planted fact, {found.count} cases", fontsize=9)
    figure.tight_layout(w_pad=2)
    figure.colorbar(image, ax=axes[0][-1], fraction=0.06)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
    return True


def splice(page: str, name: str, text: str) -> str:
    """The page with what stands between ``<!-- name -->`` and ``<!-- end name -->`` replaced.

    Raises ConfigError when the page has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if begin not in page or end not in page:
        raise ConfigError(f"the page has no place for {name!r}: it needs the lines {begin} and {end}")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
