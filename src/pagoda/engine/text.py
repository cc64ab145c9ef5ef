"""The text of one sequence as it grows: tokens to characters, stop strings held back, deltas for streams.

Where a stop string may end the sequence its text is made between two steps, by the engine's thread. Where nothing of
the text decides anything, it is made by whoever reads it, while the next step runs (``RequestOutput.tell``).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..models.detokenize import Detokenizer
from ..models.tokenizer import Tokenizer
from ..sampling.params import SamplingParams
from ..sampling.stop import StopChecker


class TextStream:
    """``visible`` is what a client may see: no half character, no beginning of a stop string."""

    __slots__ = ("_checker", "_detokenizer", "_given", "_num_pushed", "decides", "visible")

    def __init__(self, detokenizer: Detokenizer, checker: StopChecker) -> None:
        self._detokenizer, self._checker = detokenizer, checker
        self.decides = bool(checker.stops)
        """Whether the text may end the sequence; if not, only its readers need it."""
        self.visible = ""
        self._given = self._num_pushed = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer, params: SamplingParams) -> TextStream:
        """The stream of a sequence that has no output yet."""
        checker = StopChecker(params.stop_strings, min_tokens=params.min_tokens, include=params.include_stop_in_output)
        # A grammar matches the bytes of tokens: the text must be those, a first space included.
        return cls(tokenizer.detokenizer(params.skip_special_tokens, inside=params.structured is not None), checker)

    def push(self, token_id: int, num_output: int) -> str | None:
        """Token number ``num_output`` (from 1); returns the stop string that it completed, if any."""
        self._num_pushed = num_output
        check = self._checker.push(self._detokenizer.push(token_id), num_output)
        self.visible += check.text
        return check.stop

    def finish(self, num_output: int) -> str | None:
        """No more tokens: what was held back comes out. A character that never ended may complete a stop string."""
        if self._checker.stopped is not None:
            return None
        check = self._checker.push(self._detokenizer.flush(), num_output)
        self.visible += check.text
        if check.stop is None:
            self.visible += self._checker.flush()
        return check.stop

    def read(self, ids: Sequence[int], *, ended: bool) -> tuple[str, str]:
        """The text of all output ids that are shown, those that were read before among them; and its new part."""
        for token_id in ids[self._num_pushed :]:
            self.push(token_id, self._num_pushed + 1)
        if ended:
            self.finish(len(ids))
        return self.visible, self.take_delta()

    def take_delta(self) -> str:
        """The visible text that was not taken yet."""
        delta, self._given = self.visible[self._given :], len(self.visible)
        return delta
