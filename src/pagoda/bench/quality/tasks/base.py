"""The contract of a quality task, and what all of them draw from: a tokenizer, filler text, a length."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....core.errors import ConfigError
from ..facts import ANIMALS, COLORS, NAMES, PLACES, THINGS

if TYPE_CHECKING:
    from ...forced import Answer, Case

_TEMPLATES = (
    " One day, {name} found a {color} {thing} in the {place}.",
    " The {animal} looked at the {thing} and smiled.",
    " {name} wanted to play with the {color} {thing}, but the {animal} was tired.",
    " They went to the {place} and saw a big {animal}.",
    " {name} said, \"I like your {thing}.\"",
    " The {color} {animal} was very happy.",
    " Then {name} and {other} ran back to the {place}.",
    " It was a sunny day, and the {animal} sat near the {place}.",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What a task may use. ``length`` tokens a case; ``filler`` sentences as ids; ``texts`` whole texts as ids.

    A world to learn from (calibration) and one to be judged in have no text in common, of whatever files they are made.
    """

    tokenizer: Any
    length: int
    filler: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, ...], ...]
    data: Path | None = None

    @classmethod
    def make(
        cls, tokenizer: Any, length: int, *, text: Sequence[Path] = (), data: Path | None = None, learned: bool = False
    ) -> World:
        """Texts from files (one a paragraph), or made from word lists; filler sentences are of the first file. The last
        quarter of the texts is there to be ``learned`` from, what comes before it to judge by.

        Raises ConfigError for a file that cannot be read or has nothing to divide.
        """
        first, *others = [_read(path) for path in text] or [_made_up(seed=1 if learned else 2)]
        every = list(dict.fromkeys([*first, *(t for raw in others for t in raw)]))  # samples say some stories twice
        if text:
            if len(every) < 2:
                raise ConfigError(f"text file {str(text[0])!r} has one paragraph of 200 characters; give two or more")
            cut = len(every) - max(1, len(every) // 4)
            every = every[cut:] if learned else every[:cut]
        mine = set(every)
        sentences = [s for t in [t for t in first if t in mine] or every for s in _sentences(t)]
        encode = tokenizer.encode
        filler = tuple(tuple(encode(s, False)) for s in sentences[:4000])
        texts = tuple(tuple(encode(t, False)) for t in every[:400])
        return cls(tokenizer, length, filler, texts, data)

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, nothing added."""
        ids: list[int] = self.tokenizer.encode(text, False)
        return ids

    @property
    def head(self) -> tuple[int, ...]:
        """What a document begins with: the model's bos, if it has one."""
        return () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)

    def running_text(self, seed: int, count: int) -> list[int]:
        """``count`` tokens of texts from a random place on."""
        at, found = random.Random(seed).randrange(len(self.texts)), list[int]()
        while len(found) < count:
            found += self.texts[at % len(self.texts)]
            at += 1
        return found[:count]

    def passages(self, count: int, size: int) -> list[list[int]]:
        """``count`` stretches of ``size`` tokens that have none in common, spread over the texts; fewer where the texts
        have no more. Raises ConfigError where they have none.
        """
        whole = [token for text in self.texts for token in text]
        num = min(count, len(whole) // size)
        if not num:
            raise ConfigError(
                f"passages of {size} tokens do not fit into the {len(whole)} tokens of text that is there to judge by; "
                "give a smaller --length, or a longer --text"
            )
        step = len(whole) // num
        return [whole[at * step : at * step + size] for at in range(num)]


class Task(ABC):
    """A quality task. ``metrics`` name what ``score`` returns; ``higher_is_better`` for each of them."""

    metrics: ClassVar[dict[str, bool]]
    question_known: ClassVar[bool] = True
    """Whether the question is in the prompt, so that a method that compresses at its end can know it."""

    @abstractmethod
    def cases(self, world: World, count: int) -> list[Case]:
        """``count`` cases, the same from the same world, or fewer where it has no more. Raises ConfigError where it
        cannot hold one.
        """

    @abstractmethod
    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        """By metric. ``exact`` are the same cases answered with the whole KV."""


def exact_match(answers: Sequence[Answer]) -> float:
    """Share of the cases whose scored tokens were all the model's first choice."""
    return sum(bool(answer.hits.all()) for answer in answers) / len(answers)


def sequence_case(prompt: Sequence[int], pieces: Sequence[tuple[Sequence[int], bool]], **tags: int | str) -> Case:
    """A case whose forced tokens are these pieces; the flag says whether a piece is scored."""
    from ...forced import Case

    forced, scored = list[int](), list[int]()
    for ids, counts in pieces:
        if counts:
            scored += range(len(forced), len(forced) + len(ids))
        forced += ids
    return Case(tuple(prompt), tuple(forced), tuple(scored), dict(tags))


def _read(path: Path) -> list[str]:
    try:
        if path.suffix == ".gz":
            import gzip

            raw = gzip.decompress(path.read_bytes()).decode("utf-8")
        else:
            raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"text file {str(path)!r} cannot be read ({error})") from error
    texts = [" ".join(t.split()) for t in re.split(r"\n\s*\n|<\|endoftext\|>|\n", raw)]
    texts = [t for t in texts if len(t) > 200]
    if not texts:
        raise ConfigError(f"text file {str(path)!r} has no paragraph of 200 characters; give running text")
    return texts


def _sentences(text: str) -> list[str]:
    return [f" {s}" for s in re.split(r'(?<=[.!?]) (?=[A-Z"])', text.strip()) if s]


def _made_up(seed: int, count: int = 120) -> list[str]:
    rng = random.Random(seed)
    return ["".join(_sentence(rng) for _ in range(24)).strip() for _ in range(count)]


def _sentence(rng: random.Random) -> str:
    return rng.choice(_TEMPLATES).format(
        name=rng.choice(NAMES), other=rng.choice(NAMES), color=rng.choice(COLORS), thing=rng.choice(THINGS),
        place=rng.choice(PLACES), animal=rng.choice(ANIMALS),
    )  # fmt: skip
