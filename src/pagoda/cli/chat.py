"""Talk with a model; it answers while it thinks.

Lines that start with a slash are for Pagoda; /help lists them. Ctrl-C stops the answer, Ctrl-C again (or Ctrl-D at the
prompt) ends the chat. With a pipe on stdin every line is a message: ``printf "Hi\\n/stats\\n" | pagoda chat lantern``.
"""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..core.errors import PagodaError, RequestError
from . import _options as opt
from ._output import emit_json, print_ledger
from ._session import Interrupted, Session, open_llm

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def chat(
    model: opt.Model,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first message.")] = None,
    max_tokens: opt.MaxTokens = None,
    min_tokens: opt.MinTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    memory: opt.Memory = None,
    kv: opt.KV = "exact",
    kv_cache_dtype: opt.KVCacheDtype = "auto",
    dtype: opt.Dtype = "auto",
    quantization: opt.Quantization = "auto",
    weights: opt.Weights = "auto",
    spool_dir: opt.SpoolDir = None,
    device: opt.Device = "auto",
    max_model_len: opt.MaxModelLen = "auto",
    chat_template: opt.ChatTemplate = None,
    json: opt.Json = False,
) -> None:
    """Talk with a model; it answers while it thinks."""
    from ..sampling.params import SamplingParams

    choices = opt.given(
        max_tokens=max_tokens, min_tokens=min_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    params = SamplingParams(**choices)
    options = opt.given(
        memory=memory, kv=kv, kv_cache_dtype=kv_cache_dtype, dtype=dtype, quantization=quantization,
        weights=weights, spool_dir=spool_dir, device=device,
        max_model_len=opt.length(max_model_len), chat_template=opt.read_template(chat_template),
    )  # fmt: skip
    with open_llm(model, options) as session:
        Chat(session, params, system=system, json=json).loop(interactive=sys.stdin.isatty() and not json)


class Chat:
    """One conversation: its messages, and the slash commands over them."""

    def __init__(self, session: Session, params: Any, *, system: str | None, json: bool) -> None:
        self._session, self._params, self._system, self._json = session, params, system, json
        self._messages: list[dict[str, str]] = []
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "help": (self._help, "this list"),
            "stats": (self._stats, "the memory ledger"),
            "reset": (self._reset, "forget the conversation"),
            "system": (self._set_system, "TEXT: tell the model who it is (and start anew); without text: show it"),
            "save": (self._save, "FILE: write the conversation as JSON"),
            "exit": (self._exit, "end the chat"),
        }

    def loop(self, *, interactive: bool) -> None:
        """Reads lines until the end of input, ``/exit``, or Ctrl-C at the prompt."""
        if interactive:
            import readline  # noqa: F401  # arrows and history in input()

            self._say("Type a message; /help lists commands, /exit ends.")
        while (line := _read_line(interactive)) is not None:
            try:
                self.take(line.strip())
            except _EndOfChat:
                return
            except PagodaError as error:
                if not interactive and not self._json:
                    raise
                self._complain(error)

    def take(self, line: str) -> None:
        """One line of input: a command, a message, or nothing."""
        if not line:
            return
        if not line.startswith("/"):
            self._answer(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name == "quit":
            name = "exit"
        if name not in self._commands:
            raise RequestError(f"no command /{name}; commands: {', '.join('/' + c for c in self._commands)}")
        self._commands[name][0](rest.strip())

    def _answer(self, text: str) -> None:
        """Streams the answer. What was said before a Ctrl-C stays in the conversation; a refused message does not."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        self._messages.append({"role": "user", "content": text})
        try:
            output, stopped = self._stream([*system, *self._messages])
        except PagodaError:
            self._messages.pop()
            raise
        self._messages.append({"role": "assistant", "content": output.text})
        if self._json:
            usage = {"prompt_tokens": output.usage.prompt_tokens, "completion_tokens": output.usage.completion_tokens}
            reason = "abort" if stopped else output.finish_reason
            emit_json({"role": "assistant", "content": output.text, "finish_reason": reason, "usage": usage})

    def _stream(self, messages: list[dict[str, str]]) -> tuple[Any, bool]:
        output, stopped = None, False
        with Interrupted() as interrupted:
            for output in self._session.llm.stream_chat(messages, self._params):
                if output.error:
                    raise RequestError(output.error)
                self._show(output.delta)
                if interrupted.seen and not output.finished:
                    stopped = True  # leaving the loop aborts the request
                    break
        assert output is not None, "a stream ends with its last output"
        self._show(" [stopped]\n" if stopped else "\n")
        return output, stopped

    def _show(self, text: str) -> None:
        if not self._json:
            print(text, end="", flush=True)

    def _say(self, text: str) -> None:
        if self._json:
            emit_json({"info": text})
        else:
            print(text, flush=True)

    def _complain(self, error: PagodaError) -> None:
        if self._json:
            emit_json({"error": str(error)})
        else:
            print(f"pagoda: error: {error}", file=sys.stderr)

    def _help(self, _: str) -> None:
        self._say("\n".join(f"/{name:<8}{what}" for name, (_, what) in self._commands.items()))

    def _stats(self, _: str) -> None:
        memory = self._session.llm.stats()["memory"]
        if self._json:
            emit_json({"memory": memory})
        else:
            print_ledger(memory)

    def _reset(self, _: str) -> None:
        self._messages.clear()
        self._say("The conversation is forgotten.")

    def _set_system(self, text: str) -> None:
        if not text:
            self._say(self._system or "No system message is set.")
            return
        self._system = text
        self._reset("")

    def _save(self, path: str) -> None:
        if not path:
            raise RequestError("/save needs the name of a file, for example /save talk.json")
        system = [{"role": "system", "content": self._system}] if self._system else []
        try:
            with open(path, "w", encoding="utf-8") as file:
                jsonlib.dump([*system, *self._messages], file, ensure_ascii=False, indent=1)
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}") from error
        self._say(f"Saved {len(self._messages)} messages to {path}.")

    def _exit(self, _: str) -> None:
        raise _EndOfChat


class _EndOfChat(Exception):
    """``/exit``."""


def _read_line(interactive: bool) -> str | None:
    """The next line; None at the end of input, or when Ctrl-C was typed at the prompt."""
    if not interactive:
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return None
