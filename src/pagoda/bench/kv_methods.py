"""What the docs say of every method: a line in a table, and an entry made of its docstring and its prices."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..kv.codecs import CODECS
from ..kv.policies import POLICIES
from ..kv.policies.base import Need
from .kv import Price, PriceList
from .kv_judge import CONTROLS, base_name, standings
from .kv_report import JUDGED

_LITERAL = re.compile(r"::\n\n((?:    .*\n?|\n)+)")
_DEVIATES = re.compile(r"\b(Deviations?):")


def methods_table() -> str:
    """Every registered policy: what it does, its parameters, its paper."""
    lines = ["| name | what stays | parameters | paper |", "| --- | --- | --- | --- |"]
    for name, policy in POLICIES.items():
        shown = f"`{name}`" if name == "exact" else f"[`{name}`](kv-methods.md#{name})"
        summary, _ = _said(POLICIES.module(name).__doc__)
        lines.append(f"| {shown} | {summary} | {_parameters(policy)} | {_paper(policy)} |")
    return "\n".join(lines)


Places = Mapping[str, Mapping[str, int]]
"""Metric -> kv -> how it stands beside the controls (``kv_judge.standings``)."""


def methods_text(lists: Sequence[PriceList]) -> str:
    """An entry for each policy and codec: what it is, how it chooses, where it leaves its paper, what it costs on the
    model of the first list, and where it does not beat the controls on the others.
    """
    entries = {name: _policy(name, POLICIES.get(name)) for name in POLICIES.names() if name != "exact"}
    entries |= {name: _codec(name) for name in CODECS.names()}
    known = [(prices, _places(prices)) for prices in lists]
    for name, entry in entries.items():
        told = [*_costs(name, *known[0]), *(_behind(name, *one) for one in known[1:])] if known else []
        entries[name] = "\n\n".join([entry, *(["\n".join(filter(None, told))] if any(told) else [])])
    return "\n\n".join(entries.values())


def _places(prices: PriceList) -> Places:
    judged = [metric for metric in JUDGED if metric in prices.prices[0].quality and metric not in prices.left_out]
    return {metric: standings(prices, metric) for metric in judged}


def _policy(name: str, policy: Any) -> str:
    about = [str(policy.stage).capitalize(), _paper(policy), f"`{_parameters(policy)}`" if _parameters(policy) else ""]
    if Need.CALIBRATION in getattr(policy, "needs", ()):
        about.append(f"after `pagoda calibrate {name} MODEL`")
    summary, _ = _said(POLICIES.module(name).__doc__)
    text = _DEVIATES.sub(r"**\1:**", _page_text(inspect.cleandoc(policy.__doc__ or "")))
    return f"### {name}\n\n{summary}\n{', '.join(part for part in about if part)}.\n\n{text}"


def _codec(name: str) -> str:
    summary, rest = _said(CODECS.module(name).__doc__)
    return f"### {name}\n\n{summary}\nCodec of single slots.\n\n{_page_text(rest)}"


def _costs(name: str, prices: PriceList, places: Places) -> list[str]:
    """A line for each row of the price list that is this method, alone or with others."""
    mine = _rows(name, prices)
    if not mine:
        whys = [why for kv, why in prices.not_priced.items() if base_name(kv) == name]
        return [f"- {prices.model}: {f'not priced ({whys[0]})' if whys else 'not priced yet'}."]
    return [f"- {_cost(one, prices.model, places)}" for one in mine]


def _rows(name: str, prices: PriceList) -> list[Price]:
    return [one for one in prices.prices if name in [part.partition("(")[0] for part in one.kv.split("+")]]


def _behind(name: str, prices: PriceList, places: Places) -> str:
    """Where the method does not beat the controls on this model; nothing where it does."""
    said = []
    for one in _rows(name, prices):
        parts = [_by(place, _standing(one, places, place)) for place in (0, -1)]
        said += [f"`{one.kv}` {' and '.join(filter(None, parts))}"] if any(parts) else []
    return f"- {prices.model}, beside the controls at equal bytes: {'; '.join(said)}." if said else ""


def _standing(one: Price, places: Places, place: int) -> list[str]:
    return [metric for metric, mine in places.items() if mine.get(one.kv) == place]


def _by(place: int, metrics: Sequence[str]) -> str:
    said = {1: "beats the controls at equal bytes", 0: "is as good", -1: "**is worse**"}[place]
    names = ["KL" if metric == "kl" else metric.replace("_", " ") for metric in metrics]
    return f"{said} by {', '.join(names)}" if names else ""


def _cost(one: Price, model: str, places: Places) -> str:
    """What one row says of the method: bytes, KL, recall, and whom it beats."""
    said = [f"`{one.kv}` holds {one.held_share:.0%} of the bytes"]
    if one.read_share is not None and one.held_share is not None and one.read_share < one.held_share - 0.01:
        said[0] += f" and reads {one.read_share:.0%}"
        said[0] += f" besides {one.looked_share:.0%} of marks" if one.looked_share else ""
    shown = {"kl": "KL {:.3f}", "recall": "recall {:.0%}", "multi_turn": "a second question {:.0%}"}
    said += [text.format(one.quality[metric]) for metric, text in shown.items() if metric in one.quality]
    line = f"{model}: {', '.join(said)}"
    if base_name(one.kv) in CONTROLS:
        return f"{line}."
    verdict = ", ".join(filter(None, (_by(place, _standing(one, places, place)) for place in (1, 0, -1))))
    return f"{line}; {verdict}." if verdict else f"{line}."


def _said(doc: str | None) -> tuple[str, str]:
    """First paragraph, in one line, and the rest."""
    first, _, rest = inspect.cleandoc(doc or "").partition("\n\n")
    return " ".join(first.split()), rest


def _page_text(text: str) -> str:
    """A docstring as markdown: literals are fenced, double backticks are single ones."""
    fenced = _LITERAL.sub(lambda m: ":\n\n```text\n" + textwrap.dedent(m[1]).rstrip() + "\n```\n\n", text)
    return re.sub(r"(?<!`)``(?!`)", "`", fenced).rstrip()


def _parameters(policy: Any) -> str:
    return ", ".join(f"{field.name}={field.default!r}" for field in dataclasses.fields(policy))


def _paper(policy: Any) -> str:
    paper = getattr(policy, "paper", "")
    return f"[{paper.rpartition('/')[2]}]({paper})" if paper else ""
