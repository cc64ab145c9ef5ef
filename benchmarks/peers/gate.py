"""Permission to use the machine, from whatever hands it out: ``flock``, a queue, a batch system."""

from __future__ import annotations

import shlex
import subprocess


class GateLostError(RuntimeError):
    """The permission ended before the block did; what was measured after that may not have been alone."""


class Gate:
    """``with Gate("flock /tmp/machine.lock"): ...`` starts the command with a child of ours and waits until it runs.

    The child lives as long as the block; a command that ends it earlier (a time limit) is noticed by ``check``. An
    empty command is no gate.
    """

    def __init__(self, command: str = "") -> None:
        self._command = shlex.split(command)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Gate:
        if self._command:
            self._process = process = subprocess.Popen(
                [*self._command, "sh", "-c", "echo go; exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            if process.stdout.readline().strip() != "go":
                code = self._close()
                raise GateLostError(f"{shlex.join(self._command)} ended with {code} and gave no permission")
        return self

    def check(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise GateLostError(f"{shlex.join(self._command)} ended before the measurement did")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._close()

    def _close(self) -> int:
        """The child sees the end of its input and goes; the command after it. The command's exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        process.communicate()
        return process.returncode
