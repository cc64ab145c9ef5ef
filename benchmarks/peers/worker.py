"""One engine in a process of its own: a JSON line in, a JSON line out. ``python -m benchmarks.peers.worker ENGINE``.

Requests: ``{"do": "load", ...Job}``, ``{"do": "generate", "batch", "prompt", "new", "shared", "seed"}``,
``{"do": "quit"}``. An answer has ``error`` when it failed. Runs in the peer's environment: standard library only, the
engine does the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import traceback
from dataclasses import dataclass
from typing import IO, Any, Protocol

from .trace import Trace


class UnsupportedError(RuntimeError):
    """This engine, as installed, has no such weights or setting. The driver leaves it out by that name."""


@dataclass(frozen=True)
class Job:
    """What a worker loads. ``kv_tokens``: tokens that the KV cache must hold; ``kv_bytes``: their bytes at 16 bits."""

    folder: str
    checkpoint: str
    weights: str
    threads: int
    max_len: int
    max_batch: int
    kv_tokens: int
    kv_bytes: int


class Engine(Protocol):
    """What an ``engines/`` file has, beside ``FORMS`` (weights -> checkpoint form or None) and ``KV_BITS``.

    One that can share a prefix has two more methods. ``prepare_shared(prefix)`` computes it before the clock starts;
    ``generate_shared(prompts, shared, new, trace)`` is ``generate`` for prompts whose first ``shared`` tokens it is.
    """

    def __init__(self, job: Job) -> None: ...

    def info(self) -> dict[str, Any]:
        """``version`` and ``weight_bytes`` (read by one decode step), and what else a reader should know."""

    def generate(self, prompts: list[list[int]], new: int, trace: Trace) -> None:
        """Greedy, ``new`` tokens for each prompt, ends ignored; ``trace.mark`` after every step."""


def prompts_of(seed: int, batch: int, prompt: int, shared: int, vocab: int) -> list[list[int]]:
    """Random ids, the same in every engine for one seed, others for every other: no cache helps by accident."""
    rng = random.Random(seed)
    prefix = [rng.randrange(10, vocab) for _ in range(shared)]
    return [prefix + [rng.randrange(10, vocab) for _ in range(prompt - shared)] for _ in range(batch)]


def answer(engine: Any, vocab: int, request: dict[str, Any]) -> dict[str, Any]:
    """Runs one ``generate`` request; a shared prefix is put in the cache before the clock starts."""
    shared, new = request["shared"], request["new"]
    prompts = prompts_of(request["seed"], request["batch"], request["prompt"], shared, vocab)
    if not shared:
        trace = Trace(len(prompts), new)
        engine.generate(prompts, new, trace)
        return trace.summary()
    if not hasattr(engine, "generate_shared"):
        raise UnsupportedError("no prefix cache")
    engine.prepare_shared(prompts[0][:shared])
    trace = Trace(len(prompts), new)
    engine.generate_shared(prompts, shared, new, trace)
    return trace.summary()


class SharesByCache:
    """For engines that find a cached prefix themselves: they see it once before, as a request of its own."""

    def prepare_shared(self, prefix: list[int]) -> None:
        self.generate([[*prefix, 1]], 1, Trace(1, 1))  # type: ignore[attr-defined]

    def generate_shared(self, prompts: list[list[int]], shared: int, new: int, trace: Trace) -> None:
        self.generate(prompts, new, trace)  # type: ignore[attr-defined]


def serve(name: str, requests: IO[str], answers: IO[str]) -> None:
    module = importlib.import_module(f"{__package__}.engines.{name}")
    engine: Any = None
    vocab = 0
    for line in requests:
        request = json.loads(line)
        do = request.pop("do")
        if do == "quit":
            return
        try:
            if do == "load":
                job = Job(**request)
                with open(os.path.join(job.folder, "config.json"), encoding="utf-8") as file:
                    vocab = json.load(file)["vocab_size"]
                engine = module.Engine(job)
                reply = engine.info()
            else:
                reply = answer(engine, vocab, request)
        except UnsupportedError as error:
            reply = {"error": str(error), "unsupported": True}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> None:
    # Libraries print to stdout; the answers have a descriptor of their own, and what is printed goes to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin, answers)
    answers.flush()
    os._exit(0)  # engines with threads of their own hang or crash in their destructors; nothing is left to save


if __name__ == "__main__":
    main()
