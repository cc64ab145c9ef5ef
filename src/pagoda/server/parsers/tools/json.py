"""Plain JSON: an answer that begins with ``{"name": …, "arguments": {…}}`` of a known tool, or a list of those.

What models without a format of their own are asked for, and what ``tool_choice`` required holds them to.
"""

from __future__ import annotations

from .._bare import BareCalls


class JsonCalls(BareCalls):
    """See `BareCalls`."""


PARSER = JsonCalls
MARKS: tuple[str, ...] = ()
