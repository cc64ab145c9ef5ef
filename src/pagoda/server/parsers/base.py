"""What a parser of a model's output is: fed with text as it comes, it says what a client may see of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of the tool call number ``index``. ``id`` and ``name`` come with its first piece only; ``arguments`` of
    all pieces, concatenated, are one JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """News of one answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def extend(self, later: Delta) -> None:
        """Later news of the same answer."""
        self.content += later.content
        self.reasoning += later.reasoning
        self.tool_calls += later.tool_calls

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)


class OutputParser(Protocol):
    """One answer's parser; it keeps what it cannot decide yet.

    ``special`` says that it reads the model's special tokens, so that the text must come with them.
    """

    special: bool

    def push(self, text: str) -> Delta:
        """The next text of the answer, as tokens bring it."""
        ...

    def finish(self) -> Delta:
        """No more text: what was kept comes out."""
        ...


class PlainParser:
    """All text is content."""

    special = False

    def push(self, text: str) -> Delta:
        return Delta(content=text)

    def finish(self) -> Delta:
        return Delta()
