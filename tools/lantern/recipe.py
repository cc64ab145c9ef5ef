"""The recipe that made the shipped model, in tokens."""

from __future__ import annotations

from lantern.trainer import Phase

M = 1_000_000

# Short and dense first: lookup heads form where every third token is an answer. Long contexts last, and most of all.
PHASES = [
    Phase(
        256,
        1_500_000,
        {
            "recall": 0.3,
            "chat_recall": 0.2,
            "repeat": 0.05,
            "copy": 0.05,
            "count": 0.05,
            "story": 0.2,
            "chat_story": 0.15,
        },
        (0.0, 0.4),
        batch_tokens=4096,
    ),
    Phase(
        512,
        3_500_000,
        {
            "recall": 0.2,
            "chat_recall": 0.2,
            "copy": 0.04,
            "count": 0.05,
            "story": 0.28,
            "chat_story": 0.18,
            "book": 0.05,
        },
        (0.2, 0.7),
    ),
    Phase(
        1024,
        3_500_000,
        {"recall": 0.2, "chat_recall": 0.2, "copy": 0.04, "count": 0.04, "story": 0.27, "chat_story": 0.18, "book": 0.07},
        (0.4, 0.85),
    ),
    Phase(
        2048,
        10 * M,
        {"recall": 0.22, "chat_recall": 0.2, "copy": 0.02, "count": 0.06, "story": 0.2, "chat_story": 0.18, "book": 0.12},
        (0.4, 0.85),
    ),
]
