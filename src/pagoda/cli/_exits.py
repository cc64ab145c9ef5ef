"""The one place where an error becomes a line on stderr and an exit code.

=====  ===============================================================================================
code   meaning
=====  ===============================================================================================
0      done
1      ``pagoda doctor`` found something that stops Pagoda from working; or a bug, with its traceback
2      what was asked cannot be done: one line says why and what to do
130    interrupted with Ctrl-C
=====  ===============================================================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import PagodaError

BAD_REQUEST, INTERRUPTED = 2, 130


@contextmanager
def exit_codes() -> Iterator[None]:
    """Runs a command; errors that Pagoda raised on purpose, Ctrl-C and a closed pipe end it without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except PagodaError as error:
        _say(f"error: {' '.join(str(error).split())}")
        raise SystemExit(BAD_REQUEST) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # `pagoda run … | head`: the reader has what it wanted. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        line = _usage_error(error)
        if line is None:
            raise
        _say(f"error: {line}")
        raise SystemExit(BAD_REQUEST) from None


def _usage_error(error: Exception) -> str | None:
    """One line for what typer found wrong with the command line; None for any other error.

    Known by its methods: the class lives in click or in typer's own copy of it, as versions go.
    """
    message, ctx = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if message is None or ctx is None:
        return None
    line = " ".join(message().split()).rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is all of the help
        line = "No command"
    if line.startswith(("No command", "No such command")):
        line = f"{line}; commands: {', '.join(ctx.command.list_commands(ctx))}"
    return f"{line}; see {ctx.command_path} --help"


def _say(line: str) -> None:
    # The answer may have stopped in the middle of a line of the terminal.
    start = "\n" if sys.stdout.isatty() else ""
    sys.stdout.flush()
    print(f"{start}pagoda: {line}", file=sys.stderr)
