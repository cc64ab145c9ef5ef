"""What the docs say of every method: a line in a table, and an entry made of its docstring and its prices."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from ..kv.codecs import CODECS
from ..kv.policies import POLICIES
from ..kv.policies.base import Need
from .kv import Price, PriceList
from .kv_judge import CONTROLS, base_name, losers
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


def methods_text(prices: PriceList | None) -> str:
    """An entry for each policy and codec: what it is, how it chooses, where it leaves its paper, and what it costs."""
    entries = {name: _policy(name, POLICIES.get(name)) for name in POLICIES.names() if name != "exact"}
    entries |= {name: _codec(name) for name in CODECS.names()}
    if prices is None:
        return "\n\n".join(entries.values())
    judged = [metric for metric in JUDGED if metric in prices.prices[0].quality and metric not in prices.left_out]
    lost = {metric: losers(prices, metric) for metric in judged}
    return "\n\n".join(entry + _costs(name, prices, lost) for name, entry in entries.items())


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


def _costs(name: str, prices: PriceList, lost: Mapping[str, list[str]]) -> str:
    """A line for each row of the price list that is this method, alone or with others. ``lost``: metric -> who does not
    beat the controls by it.
    """
    mine = [one for one in prices.prices if name in [part.partition("(")[0] for part in one.kv.split("+")]]
    if not mine:
        whys = [why for kv, why in prices.not_priced.items() if base_name(kv) == name]
        return f"\n\n- {prices.model}: {f'not priced ({whys[0]})' if whys else 'not priced yet'}."
    return "\n\n" + "\n".join(f"- {_cost(one, prices.model, lost)}" for one in mine)


def _cost(one: Price, model: str, lost: Mapping[str, list[str]]) -> str:
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
    behind = [metric for metric, names in lost.items() if one.kv in names]
    ahead = [metric for metric in lost if metric not in behind and metric in one.quality]
    verdict = f"beats the controls at equal bytes by {_names(ahead)}" if ahead else ""
    verdict += (", " if ahead and behind else "") + (f"**does not** by {_names(behind)}" if behind else "")
    return f"{line}; {verdict}." if verdict else f"{line}."


def _names(metrics: list[str]) -> str:
    return ", ".join("KL" if metric == "kl" else metric.replace("_", " ") for metric in metrics)


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
