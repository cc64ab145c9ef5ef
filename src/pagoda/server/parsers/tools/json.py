"""Plain JSON: an answer that begins with ``{"name": …, "arguments": {…}}`` of a known tool, or a list of those.

What models without a format of their own are asked for, and what ``tool_choice`` required holds them to.
"""

from __future__ import annotations

from .._bare import BareCalls
from .._strict import Held


class JsonCalls(BareCalls):
    """See `BareCalls`."""


PARSER = JsonCalls
MARKS: tuple[str, ...] = ()


def strict_rules(held: Held) -> str:
    """The grammar of an answer in this format."""
    calls = 'call | "[" WS call (WS "," WS call)* WS "]"' if held.several else "call"
    return held.grammar(calls, held.call_rules())
