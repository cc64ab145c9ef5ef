"""Log-probabilities in the two forms of the API: lists per token (completions) and objects per token (chat)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models.tokenizer import Tokenizer
from ..sampling.logprobs import TokenLogprob


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; bytes that are no whole characters are written ``bytes:\\xe2\\x80``, as OpenAI does."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionLogprobs:
    """The lists ``tokens``, ``token_logprobs``, ``top_logprobs``, ``text_offset``; grows with the answer."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, offset: int = 0) -> None:
        self._tokenizer, self._num_top, self._offset = tokenizer, num_top, offset

    def lists(self, ids: Sequence[int], reports: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The next tokens. A report is None for the first token of a prompt, which nothing predicts."""
        tokens, offsets = [], []
        for token_id in ids:
            tokens.append(token_text(self._tokenizer, token_id))
            offsets.append(self._offset)
            if not self._tokenizer.is_special(token_id):
                self._offset += len(self._tokenizer.token_bytes(token_id).decode("utf-8", "ignore"))
        return {
            "tokens": tokens,
            "token_logprobs": [None if report is None else finite(report.logprob) for report in reports],
            "top_logprobs": [self._top(report) for report in reports],
            "text_offset": offsets,
        }

    def _top(self, report: TokenLogprob | None) -> dict[str, float] | None:
        if report is None:
            return None
        pairs = [*report.top[: self._num_top], (report.token_id, report.logprob)]
        top: dict[str, float] = {}
        for token_id, logprob in pairs:  # two tokens may have one text: the likelier one stands for both
            top.setdefault(token_text(self._tokenizer, token_id), finite(logprob))
        return top


def chat_logprobs(tokenizer: Tokenizer, reports: Sequence[TokenLogprob], num_top: int) -> list[dict[str, Any]]:
    """The ``content`` list of a chat answer's logprobs."""
    return [
        _entry(tokenizer, report.token_id, report.logprob)
        | {"top_logprobs": [_entry(tokenizer, token_id, logprob) for token_id, logprob in report.top[:num_top]]}
        for report in reports
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def finite(logprob: float) -> float:
    """JSON has no infinity: a token that the model rules out is shown as very unlikely."""
    return max(logprob, -9999.0)
