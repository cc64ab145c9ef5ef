from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import MODEL, in_process

Capture = pytest.CaptureFixture[str]
FEW = ("--max-tokens", "8", "--temperature", "0")


def test_a_piped_chat_answers_every_line_and_obeys_the_slashes(capfd: Capture, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    lines = ["Hello there", "", "/stats", "/system You are a cat.", "/system", "Who are you?", f"/save {talk}", "/help"]
    done = in_process(capfd, "chat", MODEL, *FEW, stdin="\n".join([*lines, "/exit", "not read any more"]))
    assert done.code == 0, done.err
    assert "Memory ledger" in done.out
    assert "You are a cat." in done.out
    assert "/reset" in done.out
    messages = json.loads(talk.read_text())
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "Who are you?"


def test_chat_in_json_is_a_line_per_answer_and_survives_mistakes(capfd: Capture, tmp_path: Path) -> None:
    lines = ["Hello", "/nonsense", "/save", f"/save {tmp_path}/no/such/folder/x", "/reset", "/stats", "Hello", "/quit"]
    done = in_process(capfd, "chat", MODEL, *FEW, "--json", stdin="\n".join(lines))
    assert done.code == 0, done.err
    assert done.err == ""
    first, unknown, unnamed, unwritable, reset, stats, second = (json.loads(line) for line in done.out.splitlines())
    assert first["role"] == "assistant"
    assert first["usage"]["completion_tokens"] <= 8
    assert "/stats" in unknown["error"]
    assert "name of a file" in unnamed["error"]
    assert "cannot write" in unwritable["error"]
    assert "forgotten" in reset["info"]
    assert stats["memory"]["rss_bytes"] > 0
    assert second == first  # a conversation that was reset starts the same again


def test_a_message_longer_than_the_context_is_refused_and_forgotten(capfd: Capture) -> None:
    lines = ["word " * 200, "Hi", "/quit"]
    done = in_process(capfd, "chat", MODEL, *FEW, "--json", "--max-model-len", "128", stdin="\n".join(lines))
    refused, answer = (json.loads(line) for line in done.out.splitlines())
    assert "context is 128" in refused["error"]
    assert answer["role"] == "assistant"
    piped = in_process(capfd, "chat", MODEL, *FEW, "--max-model-len", "128", stdin=lines[0])
    assert (piped.code, piped.err.count("\n")) == (2, 1)


def test_a_chat_template_of_ones_own(capfd: Capture, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    args = ("chat", MODEL, *FEW, "--json", "--chat-template")
    from_file = in_process(capfd, *args, str(template), stdin="Once upon a time")
    literal = in_process(capfd, *args, template.read_text(), stdin="Once upon a time")
    assert from_file.code == 0, from_file.err
    assert from_file.json == literal.json
    missing = in_process(capfd, *args, "/no/such/template", stdin="x")
    assert missing.code == 2
    assert "neither a template nor a readable file" in missing.err


class Terminal:
    """``pagoda chat`` on a pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        self._fd, follower = pty.openpty()
        command = [sys.executable, "-m", "pagoda", "chat", MODEL, *args]
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        # A shell's background jobs ignore Ctrl-C, and so would what the tests start there.
        self.process = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env=env, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(follower)
        self.seen = ""

    def wait_for(self, pattern: str, timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end, f"waited for {pattern!r}, saw {self.seen!r}"
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._fd, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert re.search(pattern, self.seen), f"ended before {pattern!r}: {self.seen!r}"

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ended_by_interrupts(self) -> int | None:
        """The exit code. A signal that comes between readline's prompt and its select() is lost in CPython's input():
        so a moment's patience, and once more if need be.
        """
        for _ in range(5):
            time.sleep(0.5)
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=20)
        return None


def test_on_a_terminal_ctrl_c_stops_the_answer_then_ends_the_chat() -> None:
    terminal = Terminal("--max-tokens", "100000", "--min-tokens", "100000")
    try:
        terminal.wait_for(r"ends\.\s+> ")
        terminal.type("Tell me a story\n")
        terminal.wait_for(r"Tell me a story\r?\n\s*\w")
        terminal.interrupt()
        terminal.wait_for(r"\[stopped\]\s+> ")
        assert terminal.ended_by_interrupts() == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.process.kill()
        terminal.process.wait()
