"""Commands that have commands of their own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

WHOLE = 1 << 16
"""More letters than a summary has: click cuts at the width of a line, in the middle of a sentence."""


class WholeSummaries(TyperGroup):
    """Its help has the first sentence of each command, on as many lines as that takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(WHOLE)) for name, one in found if one is not None])


def group() -> typer.Typer:
    """One to which commands are added."""
    return typer.Typer(
        cls=WholeSummaries,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )
