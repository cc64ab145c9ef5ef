"""The texts lantern learns from, split once into train and held-out parts."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
from dataclasses import dataclass
from pathlib import Path

from lantern.story_sampler import read_shard

HELD_OUT_SHARE = 0.02  # of the books
HELD_OUT_STORIES = 48
# Seen in the TinyStories sample: UTF-8 quotes decoded as cp1252.
MOJIBAKE = {"â€œ": '"', "â€\x9d": '"', "â€": '"', "â€™": "'", "â€˜": "'", "â€“": "-", "â€”": "-"}


@dataclass(frozen=True)
class Corpus:
    """Lists of texts; `real` are TinyStories themselves, `stories` were sampled, `books` are passages."""

    stories: list[str]
    real: list[str]
    books: list[str]
    held_stories: list[str]
    held_real: list[str]
    held_books: list[str]


def real_stories(data: Path) -> tuple[list[str], list[str]]:
    """Train: the head of TinyStories. Held out: the stories of the other sample file, each once."""

    def clean(text: str) -> str:
        for bad, good in MOJIBAKE.items():
            text = text.replace(bad, good)
        return text.strip()

    head = clean(gzip.decompress((data / "text/tinystories_train_head.txt.gz").read_bytes()).decode())
    # The file separates paragraphs and stories alike by a blank line; a story is where a known opening begins one.
    starts = re.compile(
        r"\n\n(?=Once upon|One day|Once there|Once,|There was|There once|In a |Tom and|Lily and|Ben and)"
    )
    train = [s.strip() for s in starts.split(head) if len(s) > 150]
    sample = clean(gzip.decompress((data / "text/tinystories_valid_word_sample.txt.gz").read_bytes()).decode())
    known = set(train)
    held = sorted({line.strip() for line in sample.splitlines() if len(line) > 150} - known)
    return train, held


def hardness(passage: str, simple_words: set[str]) -> float:
    """Share of words that the stories do not use."""
    words = re.findall(r"[a-z']+", passage.lower())
    return sum(w not in simple_words for w in words) / max(1, len(words))


def book_passages(data: Path, seed: int, limit_chars: int, simple_words: set[str]) -> tuple[list[str], list[str]]:
    """Passages of about 2,000 characters, the simplest taken first: prose for adults is beyond this model.

    Whole books are held out, not passages of a book that was read.
    """
    with lzma.open(data / "text/classic_books.jsonl.xz", "rt", encoding="utf-8") as file:
        books = [json.loads(line)["text"] for line in file]
    rng = random.Random(seed)
    rng.shuffle(books)
    cut = max(1, int(len(books) * HELD_OUT_SHARE))

    def passages(texts: list[str], limit: int) -> list[str]:
        found = []
        for text in texts:
            paragraphs = [re.sub(r"\s+", " ", p).strip() for p in text.split("\n\n")]
            piece = ""
            for p in paragraphs:
                if not p or p.startswith("#"):
                    continue
                piece = f"{piece}\n\n{p}" if piece else p
                if len(piece) > 2000:
                    found.append(piece[:4000])
                    piece = ""
        rng.shuffle(found)
        if simple_words:
            found.sort(key=lambda p: hardness(p, simple_words))
        return found[: limit // 2200]

    return passages(books[cut:], limit_chars), passages(books[:cut], 200_000)


def load_corpus(data: Path, shards: list[Path], seed: int, book_chars: int) -> Corpus:
    real, held_real = real_stories(data)
    simple_words = set(re.findall(r"[a-z']+", " ".join(real).lower()))
    books, held_books = book_passages(data, seed, book_chars, simple_words)
    known_words = set(re.findall(r"[a-z']+", " ".join(real + held_real + books).lower()))

    def sane(story: str) -> bool:
        # A word that is in no real text is one the sampler made up ("trumpol"); with the
        # words of the simplest books only, this also drops sound stories: 45 % of all go.
        return all(w in known_words for w in re.findall(r"[a-z']+", story.lower()))

    # Held out: the start of the first shard, so that more shards later do not move the border.
    held_stories, *rest = [[s for s in read_shard(path) if sane(s)] for path in shards]
    held_stories, first = held_stories[:HELD_OUT_STORIES], held_stories[HELD_OUT_STORIES:]
    stories = [s for s in dict.fromkeys([*first, *(s for shard in rest for s in shard)]) if s not in held_stories]
    random.Random(seed).shuffle(stories)
    return Corpus(stories, real, books, held_stories, held_real, held_books)
