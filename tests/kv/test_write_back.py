"""Pages on their way to the disk: what follows each other in a text goes together, and nothing is lost at the end."""

from __future__ import annotations

from pagoda.kv.tiers._base import Name
from pagoda.kv.write_back import Block, Outbox, in_runs


def block(text: str) -> Block:
    """Of the last letter, after those before it."""
    return Name(text.encode(), text[:-1].encode(), text[-1].encode()), text.encode()


def blocks(texts: str) -> list[Block]:
    return [block(text) for text in texts.split()]


def texts(runs: list[list[Block]] | None) -> list[str]:
    assert runs is not None
    return [" ".join(raw.decode() for _, raw in run) for run in runs]


def test_runs_are_found_between_those_of_others() -> None:
    assert texts(in_runs(blocks("a b ab bx abc z bxy"))) == ["a ab abc", "b bx bxy", "z"]
    assert texts(in_runs(blocks("a ab ac abd acd"))) == ["a ab abd", "ac acd"]  # a fork begins a run of its own
    assert in_runs([]) == []


def test_what_came_while_the_disk_was_busy_goes_together_and_all_before_the_end() -> None:
    outbox = Outbox()
    outbox.put(blocks("a ab"))
    outbox.put(blocks("b abc"))
    assert texts(outbox.take()) == ["a ab abc", "b"]
    outbox.put(blocks("x"))
    outbox.close()
    assert texts(outbox.take()) == ["x"]
    assert outbox.take() is None
