"""Token ids to text one at a time, so that a stream's pieces add up to exactly ``tokenizer.decode(all ids)``.

A decoder is a chain of steps over the list of tokens. Each step becomes a *stage* that takes one piece, returns
what can no longer change, and keeps the rest; ``flush`` empties the stages in order. For example SentencePiece::

    token     Replace ▁→space    ByteFallback             Fuse   Strip (1 space at the very start)
    ▁Once     " Once"            " Once"                          "Once"
    <0xF0>    <0xF0>             (kept)
    <0x9F>    …                  (kept: a run of bytes)
    ,         ","                the run, then ","                "😀,"

Held back, never corrected: an unfinished UTF-8 character (byte-level), or a run of byte tokens (SentencePiece: the
decoder judges a run as a whole, and one bad byte turns all of it into U+FFFD, so no part of it is certain before its
end). The cost of a token does not depend on how many came before it.

A chain with a step that is not known here (WordPiece, CTC, …) goes through ``_Window``, which decodes a short window of
ids twice and returns the difference.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tokenizers

    from .tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """Incremental decoder of one stream. ``push(id)`` returns the text that is now certain; ``flush()`` the rest."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, *, inside: bool = False) -> None:
        """``inside``: the stream begins in the middle of a text, so that a first token keeps its leading space and the
        text is the tokens' bytes (``token_bytes``)."""
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        stages = _stages(tokenizer.decoder_steps, inside)
        self._chain: _Chain | _Window = _Window(tokenizer, skip_special_tokens) if stages is None else _Chain(stages)

    def push(self, token_id: int) -> str:
        """Text that became certain with this id, possibly none. Unknown ids give nothing, as in ``decode``."""
        token = self._tokenizer.token(token_id)
        if token is None or (self._skip and self._tokenizer.is_special(token_id)):
            return ""
        return self._chain.push(token_id, token)

    def flush(self) -> str:
        """What was still held back; the stream is over (an unfinished character comes out as U+FFFD)."""
        return self._chain.flush()


class _Stage(Protocol):
    def push(self, piece: str) -> list[str]:
        """The pieces that are certain after this one."""

    def flush(self) -> list[str]:
        """What was held back."""


class _Chain:
    def __init__(self, stages: list[_Stage]) -> None:
        self._stages = stages

    def push(self, token_id: int, token: str) -> str:
        return "".join(self._run([token], self._stages))

    def flush(self) -> str:
        out = ""
        for i, stage in enumerate(self._stages):
            out += "".join(self._run(stage.flush(), self._stages[i + 1 :]))
        return out

    @staticmethod
    def _run(pieces: list[str], stages: list[_Stage]) -> list[str]:
        for stage in stages:
            pieces = [out for piece in pieces for out in stage.push(piece)]
        return pieces


class _Map:
    """A step that treats each token alone (Replace and Strip before Fuse)."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def push(self, piece: str) -> list[str]:
        return [self._function(piece)]

    def flush(self) -> list[str]:
        return []


class _ByteLevel:
    """GPT-2's alphabet: every character is a byte. Bytes of one character may lie in several tokens."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: str) -> list[str]:
        return [self._utf8.decode(_byte_level_bytes(piece))]

    def flush(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _ByteFallback:
    """``<0x0A>`` is a byte. A run of bytes is text if all of it is valid UTF-8, else one U+FFFD for each byte."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> list[str]:
        match = _BYTE_TOKEN.fullmatch(piece)
        if match is None:
            return [*self.flush(), piece]
        self._run.append(int(match[1], 16))
        return []

    def flush(self) -> list[str]:
        if not self._run:
            return []
        run, self._run = bytes(self._run), bytearray()
        try:
            return [run.decode("utf-8")]
        except UnicodeDecodeError:
            return ["\ufffd" * len(run)]


class _StripText:
    """Strip after Fuse: at most ``start`` / ``stop`` times ``content`` at the two ends of the whole text."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._left, self._stop, self._kept = content, start, stop, ""

    def push(self, piece: str) -> list[str]:
        while self._left and piece:
            if not piece.startswith(self._content):
                self._left = 0
                break
            piece, self._left = piece[1:], self._left - 1
        text = self._kept + piece
        cut = len(text) - self._tail(text)
        self._kept = text[cut:]
        return [text[:cut]]

    def flush(self) -> list[str]:
        return []  # what is kept is what the end of the text loses

    def _tail(self, text: str) -> int:
        n = 0
        while n < min(self._stop, len(text)) and text[len(text) - 1 - n] == self._content:
            n += 1
        return n


class _Metaspace:
    """▁ is a space, except in the first token, where it is nothing (unless the scheme is ``never``)."""

    def __init__(self, replacement: str, first: str) -> None:
        self._replacement, self._space = replacement, first

    def push(self, piece: str) -> list[str]:
        text, self._space = piece.replace(self._replacement, self._space), " "
        return [text]

    def flush(self) -> list[str]:
        return []


class _Joined:
    """No decoder at all: tokens with a space between."""

    def __init__(self) -> None:
        self._separator = ""

    def push(self, piece: str) -> list[str]:
        text, self._separator = self._separator + piece, " "
        return [text]

    def flush(self) -> list[str]:
        return []


class _Window:
    """For any other decoder: text of the window with the new id, less the text of the window without it.

    ``_CONTEXT`` shown ids stay in front so that the decoder's rule for a first token does not fire inside the text.
    """

    _CONTEXT, _LIMIT = 6, 48

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._num_shown = 0  # ids at the front of the window whose text has been returned

    def push(self, token_id: int, token: str) -> str:
        self._ids.append(token_id)
        before, now = self._decode(self._ids[: self._num_shown]), self._decode(self._ids)
        waiting = len(self._ids) - self._num_shown
        if not now.startswith(before) or (now.endswith("\ufffd") and waiting < self._LIMIT):
            return ""
        self._num_shown = min(self._CONTEXT, len(self._ids))
        self._ids = self._ids[-self._num_shown :]
        return now[len(before) :]

    def flush(self) -> str:
        before, now = self._decode(self._ids[: self._num_shown]), self._decode(self._ids)
        self._ids, self._num_shown = [], 0
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)


def read_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]] | None:
    """The decoder's steps as its JSON describes them, sequences opened; None if the tokenizer has no decoder."""
    return None if backend.decoder is None else _opened(json.loads(backend.decoder.__getstate__()))


def _opened(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for outer in step["decoders"] for inner in _opened(outer)]


def _stages(steps: list[dict[str, Any]] | None, inside: bool) -> list[_Stage] | None:
    """A stage for each step, or None if some step is not known here."""
    if steps is None:
        return [_Joined()]
    stages: list[_Stage] = []
    fused = False  # whether the pieces are parts of one text by now
    for step in steps:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "Replace" and "String" in step["pattern"] and not fused:
            stages.append(_Map(_replacer(step["pattern"]["String"], step["content"])))
        elif kind == "Strip" and fused:
            stages.append(_StripText(step["content"], 0 if inside else step["start"], step["stop"]))
        elif kind == "ByteFallback" and not fused:
            stages.append(_ByteFallback())
        elif kind == "ByteLevel" and not fused:
            stages.append(_ByteLevel())
            fused = True
        elif kind == "Metaspace" and not fused and not stages:
            never = step.get("prepend_scheme", "always") == "never"
            stages.append(_Metaspace(step["replacement"], " " if never or inside else ""))
        else:
            return None
    return stages


def _replacer(pattern: str, content: str) -> Callable[[str], str]:
    return lambda piece: piece.replace(pattern, content)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for the characters from U+0100 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[c] for c in token)
    except KeyError:  # an added token that is written in plain text
        return token.encode("utf-8")


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Bytes of one token in the middle of a text: what log-probabilities report and grammars match."""
    token = tokenizer.token(token_id)
    if token is None:
        return b""
    if tokenizer.is_special(token_id):
        return token.encode("utf-8")
    steps = tokenizer.decoder_steps or []
    for step in steps:
        if step["type"] == "ByteLevel":
            return _byte_level_bytes(token)
        if step["type"] == "Replace" and "String" in step["pattern"]:
            token = token.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
        elif step["type"] == "ByteFallback" and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        elif step["type"] == "WordPiece":
            token = token.removeprefix(step["prefix"]) if token.startswith(step["prefix"]) else " " + token
    return token.encode("utf-8")
