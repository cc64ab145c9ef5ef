"""What the docs say of every method: a line in a table, and an entry made of its docstring and its prices."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
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
    entries = [_policy(name, POLICIES.get(name)) + _costs(name, prices) for name in POLICIES.names() if name != "exact"]
    entries += [_codec(name) + _costs(name, prices) for name in CODECS.names()]
    return "\n\n".join(entries)


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


def _costs(name: str, prices: PriceList | None) -> str:
    """A line for each row of the price list that is this method, alone or with others."""
    if prices is None:
        return ""
    mine = [one for one in prices.prices if name in [part.partition("(")[0] for part in one.kv.split("+")]]
    return "\n\n" + "\n".join(f"- {_cost(one, prices)}" for one in mine) if mine else ""


def _cost(one: Price, prices: PriceList) -> str:
    """What one row says of the method: bytes, KL, recall, and whom it beats."""
    said = [f"`{one.kv}` holds {one.held_share:.0%} of the bytes"]
    if one.read_share is not None and one.held_share is not None and one.read_share < one.held_share - 0.01:
        said[0] += f" and reads {one.read_share:.0%}"
    shown = {"kl": "KL {:.3f}", "recall": "recall {:.0%}", "multi_turn": "a second question {:.0%}"}
    said += [text.format(one.quality[metric]) for metric, text in shown.items() if metric in one.quality]
    line = f"{prices.model}: {', '.join(said)}"
    if base_name(one.kv) in CONTROLS:
        return f"{line}."
    judged = [m for m in JUDGED if m in one.quality and m not in prices.left_out]
    lost = [metric for metric in judged if one.kv in losers(prices, metric)]
    won = [metric for metric in judged if metric not in lost]
    verdict = f"beats the controls at equal bytes by {_names(won)}" if won else ""
    verdict += (", " if won and lost else "") + (f"**does not** by {_names(lost)}" if lost else "")
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
