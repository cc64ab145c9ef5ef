"""Llama 3.1 to 3.3: an answer that is ``{"name": …, "parameters": {…}}``, or that follows ``<|python_tag|>``.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1: several calls are separated by semicolons.
"""

from __future__ import annotations

from .._bare import BareCalls
from .._strict import Held


class Llama3(BareCalls):
    """Code behind the tag (``brave_search.call(…)``) is not a call of the request's tools: it is content."""

    tag = "<|python_tag|>"
    separators = ";,"
    lists = False
    needs_special_tokens = True


PARSER = Llama3
MARKS = ("<|python_tag|>", "Environment: ipython")


def strict_rules(held: Held) -> str:
    """The grammar of an answer in this format; the tag may not begin anything else."""
    calls = 'call (WS ";" WS call)*' if held.several else "call"
    token_id = held.special(Llama3.tag)
    tag = "" if token_id is None else f"<[{token_id}]>? "
    return held.grammar(tag + calls, held.call_rules("parameters"))
