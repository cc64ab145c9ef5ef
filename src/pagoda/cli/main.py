"""``pagoda``: finds the command's file by its name. Help is read from the files' docstrings without importing them.

Measured: ``pagoda --help`` must stay under 0.2 s; importing the commands would add rich, importing torch 1.5 s.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ._exits import exit_codes

_HERE = Path(__file__).parent
_ORDER = (
    "run",
    "chat",
    "serve",
    "models",
    "plan",
    "doctor",
    "quantize",
    "pack",
    "prune",
    "bundle",
    "cache",
    "bench",
    "calibrate",
)


class LazyCommands(TyperGroup):
    """Commands are the modules of this package that are neither ``main`` nor private; each defines ``app``."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = [m.name for m in pkgutil.iter_modules([str(_HERE)]) if not m.name.startswith("_") and m.name != "main"]
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = typer.main.get_command(importlib.import_module(f"{__package__}.{cmd_name}").app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.list_commands(ctx):
            ctx.fail(f"no command {args[0]!r}; commands: {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in self.list_commands(ctx)])

    def invoke(self, ctx: Any) -> Any:
        with exit_codes():
            return super().invoke(ctx)


def summary(name: str) -> str:
    """The first line of a command file's docstring."""
    doc = ast.get_docstring(ast.parse((_HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


app = typer.Typer(
    cls=LazyCommands,
    name="pagoda",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would cost 0.1 s at every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pagoda {__version__}")
        raise typer.Exit


@app.callback()
def _pagoda(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Language models inside a memory budget that you state in bytes."""


def main(args: list[str] | None = None) -> None:
    """The console script."""
    app(args, prog_name="pagoda")
