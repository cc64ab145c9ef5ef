"""How long a model may think: ``thinking.budget_tokens`` of /v1/messages, ``thinking_token_budget`` elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..sampling.closing import Closing
from .errors import bad
from .parsers import REASONING_PARSERS
from .parsers.pipeline import choose_reasoning_parser

if TYPE_CHECKING:
    from .service import Service
    from .structured import Form


@dataclass(frozen=True, slots=True)
class Thoughts:
    """At most ``budget`` tokens between the marks; ``begin`` and ``end`` are their texts and token ids."""

    budget: int
    begin: tuple[str, tuple[int, ...]]
    end: tuple[str, tuple[int, ...]]

    def closing(self, prompt: str) -> Closing:
        """For an answer to this prompt, which may have opened the thoughts itself."""
        if prompt.rstrip().endswith(self.begin[0]):
            return Closing(self.budget, self.end[1])
        return Closing(self.budget + len(self.begin[1]), self.end[1], self.begin[1])


def thoughts_of(service: Service, budget: int | None, form: Form, field: str) -> Thoughts | None:
    """The bound that a request asks for. Raises ApiError naming ``field`` where the model cannot keep it."""
    if budget is None:
        return None
    if form.whole:
        raise bad(field, f"{field}: an answer that is held to a form has no thoughts before it; leave one out")
    name = choose_reasoning_parser(service.config.reasoning_parser, service.template_text)
    marks = None if name is None else getattr(REASONING_PARSERS.module(name), "BOUNDS", None)
    if marks is None:
        raise bad(field, f"{field}: this model has no thoughts that could be bounded; leave it out")
    tokenizer = service.llm.tokenizer
    begin, end = ((mark, tuple(tokenizer.encode(mark, add_special_tokens=False))) for mark in marks)
    if form.structured is not None and any(map(tokenizer.is_special, end[1])):
        raise bad(field, f"{field}: cannot be kept beside strict tools on this model; leave one out")
    return Thoughts(budget, begin, end)
