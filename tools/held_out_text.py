"""Writes text that lantern was not trained on, to judge it by: `python tools/held_out_text.py DATA > FILE`."""

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

from lantern.corpus import HELD_OUT_SHARE

LANTERN = Path(__file__).parents[1] / "src/pagoda/assets/lantern"
CHARS = 40_000  # of each book


def held_out(data: Path) -> list[str]:
    """The beginnings of the books that `lantern.corpus` holds out whole."""
    with lzma.open(data / "text/classic_books.jsonl.xz", "rt", encoding="utf-8") as file:
        books = [json.loads(line)["text"] for line in file]
    random.Random(json.loads((LANTERN / "training.json").read_text())["seed"]).shuffle(books)
    return [book[:CHARS] for book in books[: max(1, int(len(books) * HELD_OUT_SHARE))]]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "text").is_dir():
        sys.exit("usage: python tools/held_out_text.py DATA > FILE, where DATA has the folder text/ of the shared data")
    print("\n\n".join(held_out(Path(sys.argv[1]))))
