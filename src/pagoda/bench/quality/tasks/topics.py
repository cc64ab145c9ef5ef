"""LongChat's topics: which was the first topic of a long conversation? Needs the conversations as a file."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....core.errors import ConfigError
from .base import Task, World, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case

FILE = "eval/longchat_topics_sample.jsonl.gz"
_TOPIC = re.compile(r"(?=USER: I would like to discuss the topic of )")


class Topics(Task):
    """Share of the topic's tokens that are the first choice (LongChat, lmsys.org/blog/2023-06-29-longchat). Where a
    conversation is longer than the length, every topic is cut to its share.
    """

    metrics: ClassVar[dict[str, bool]] = {"topics": True}

    def cases(self, world: World, count: int) -> list[Case]:
        if world.data is None or not (world.data / FILE).is_file():
            raise ConfigError(f"the topics task reads {FILE} of a data folder; say where with --data, or leave it out")
        rows = _rows(world.data / FILE)
        cases = [case for row in rows if (case := _case(world, row)) is not None]
        if not cases:
            raise ConfigError(f"no conversation fits into a length of {world.length} tokens; raise --length")
        return cases[:count]

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        hits = [answer.hits for answer in answers]
        return {"topics": sum(int(h.sum()) for h in hits) / sum(len(h) for h in hits)}


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _case(world: World, row: dict[str, Any]) -> Case | None:
    """None where a topic would have less than two dozen tokens."""
    head, *topics = _TOPIC.split(row["prompt"])
    topics[-1], _, question = topics[-1].partition("Now the record ends.")
    tail = world.encode(f" Now the record ends.{question} ASSISTANT: The first topic is")
    answer = world.encode(f" {row['topics'][0].lower()}")
    start = [*world.head, *world.encode(head)]
    each = (world.length - len(start) - len(tail) - len(answer)) // len(topics)
    if each < 24:
        return None
    told = [token for topic in topics for token in world.encode(topic)[:each]]
    return sequence_case([*start, *told, *tail], [(answer, True)])


TASK = Topics
