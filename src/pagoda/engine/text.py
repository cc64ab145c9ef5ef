"""The text of one sequence as it grows: tokens to characters, stop strings held back, deltas for streams."""

from __future__ import annotations

from ..models.detokenize import Detokenizer
from ..models.tokenizer import Tokenizer
from ..sampling.params import SamplingParams
from ..sampling.stop import StopChecker


class TextStream:
    """``visible`` is what a client may see: no half character, no beginning of a stop string."""

    __slots__ = ("_checker", "_detokenizer", "_given", "visible")

    def __init__(self, detokenizer: Detokenizer, checker: StopChecker) -> None:
        self._detokenizer, self._checker = detokenizer, checker
        self.visible = ""
        self._given = 0

    @classmethod
    def of(cls, tokenizer: Tokenizer, params: SamplingParams) -> TextStream:
        """The stream of a sequence that has no output yet."""
        checker = StopChecker(params.stop_strings, min_tokens=params.min_tokens, include=params.include_stop_in_output)
        # A grammar matches the bytes of tokens: the text must be those, a first space included.
        return cls(tokenizer.detokenizer(params.skip_special_tokens, inside=params.structured is not None), checker)

    def push(self, token_id: int, num_output: int) -> str | None:
        """Token number ``num_output`` (from 1); returns the stop string that it completed, if any."""
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

    def take_delta(self) -> str:
        """The visible text that was not taken yet."""
        delta, self._given = self.visible[self._given :], len(self.visible)
        return delta
