"""What is measured: batch, prompt, new tokens, and what is special about a setting."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Setting:
    """``batch`` prompts of ``prompt`` tokens, ``new`` tokens each, greedy, none of them an end.

    shared: leading tokens that all prompts have in common and that are in the prefix cache before the clock starts.
    neighbour: another process keeps one CPU busy meanwhile.
    metrics: ``decode`` = tokens/s while every sequence decodes; ``prefill`` = prompt tokens / time to the first token.
    """

    name: str
    batch: int
    prompt: int
    new: int
    metrics: tuple[str, ...]
    shared: int = 0
    neighbour: bool = False

    @property
    def max_len(self) -> int:
        return self.prompt + self.new

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is held at the end, a shared prefix counted once."""
        return self.shared + self.batch * (self.max_len - self.shared)


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("b1", 1, 128, 64, ("decode",)),
        Setting("b8", 8, 128, 33, ("decode",)),
        Setting("b32", 32, 128, 33, ("decode",)),
        Setting("p1024", 1, 1024, 1, ("prefill",)),
        Setting("c4096", 1, 4096, 33, ("prefill", "decode")),
        Setting("c8192", 1, 8192, 33, ("prefill", "decode")),
        Setting("shared", 32, 2048 + 64, 33, ("decode",), shared=2048),
        Setting("neighbour", 1, 128, 64, ("decode",), neighbour=True),
    )
}

# The columns of the tables: (setting, metric, title).
COLUMNS = (
    ("b1", "decode", "decode b=1"),
    ("b8", "decode", "decode b=8"),
    ("b32", "decode", "decode b=32"),
    ("p1024", "prefill", "prefill 1024"),
    ("c4096", "prefill", "prefill 4096"),
    ("c8192", "prefill", "prefill 8192"),
    ("c4096", "decode", "decode at 4k"),
    ("c8192", "decode", "decode at 8k"),
    ("shared", "decode", "decode b=32, 2048 shared"),
    ("neighbour", "decode", "decode b=1, busy neighbour"),
)
