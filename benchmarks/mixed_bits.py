"""Bits by matrix against the same bits everywhere, at equal bytes: `python -m benchmarks.mixed_bits ../shared/data`.

Every real model that is there, at the bytes of a uniform format and between two of them. Both take their codes by gptq
from the same text, and both are then trained on it (`--codes gptq`: neither is); both are written and loaded again as
`pagoda quantize` does; perplexity is judged on text that neither has seen. All stories are judged: they are cut into
parts, and each part is judged by models that were chosen on the others (`--parts 0` for one of the parts). lantern has
learnt those TinyStories by heart, so it is judged on fresh ones too (`--texts fresh`), told by bitnet-stories-3M as its
other teaching was. The uniform model is the largest of those that fit the bytes. What is between the two is given with
twice its standard error over the judged texts, which are the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.engine.llm import LLM
from pagoda.models.decoder import Decoder
from pagoda.models.distill import distill
from pagoda.models.load import load_model
from pagoda.models.mixed import CANDIDATES, mixed, surprise
from pagoda.models.quantize import kl, quantize_model, run
from pagoda.sampling.params import SamplingParams
from pagoda.weights.quantization import parse_format, parse_quantization

TOKENS = {"lantern": 26_624, "stories260K": 32_768, "bitnet-stories-3M": 8192}
"""Model -> tokens that codes and bits are chosen on."""
BUDGETS = ("int4", "int4(group=32)", "int4(group=32) + int8", "int3(rank=0)")
UNIFORM = ("int8", "int5(group=48)", "int5", "int4(group=32)", "int4", "int3(rank=0)")
LENGTH = 256  # of a judged text
PARTS = {"tinystories": 3, "fresh": 2}
KINDS = {"lantern": ("tinystories", "fresh")}
FRESH_CHARACTERS, WARMTH, LONGEST = 400_000, 0.7, 300
HEROES = ("boy", "girl", "dog", "cat", "bird", "rabbit", "bear", "frog", "duck", "princess", "fish", "mouse")
TRAITS = ("little", "brave", "happy", "shy", "kind", "hungry", "clever", "sleepy", "proud", "curious")


@dataclass(frozen=True, slots=True)
class Judged:
    """A model on one text: nats of the tokens, and KL divergence from the exact one."""

    nats: float
    kl: float


@dataclass(slots=True)
class Part:
    """What came of one part of the stories: bytes, and every judged text by each of the three models."""

    uniform: str
    mixed_bytes: int
    seconds: float
    exact: list[float]
    by_uniform: list[Judged]
    by_mixed: list[Judged]


class _Judge:
    """One model, and what is asked of its quantized copies on one part of the stories."""

    def __init__(self, name: str, data: Path, texts: tuple[str, str], codes: str) -> None:
        self.codes = codes
        self.loaded = load_model(name if name == "lantern" else str(data / "models" / name), quantization="none")
        judged, learned = (self.loaded.tokenizer.encode(text) for text in texts)
        self.learned, self.judged = _pieces(learned[: TOKENS[name]]), _pieces(judged)
        self.exact = self._logits(self.loaded)

    def _logits(self, loaded: Any) -> list[Any]:
        model = loaded.model
        return run(Decoder(model.spec, model.weights(), rope_length=model.rope_length), self.judged)

    def _bytes_of(self, text: str) -> int:
        return self.loaded.shape.weight_bytes(self.loaded.dtype, parse_quantization(text))

    def budget(self, text: str) -> int:
        """Bytes of a format, or half way between two."""
        return sum(map(self._bytes_of, parts := text.split(" + "))) // len(parts)

    def _price(self, folder: Path) -> tuple[int, list[Judged]]:
        """Bytes, and every judged text, of a model written to ``folder``."""
        loaded = load_model(folder)
        try:
            found = zip(self.judged, self.exact, self._logits(loaded), strict=True)
            return loaded.model.weight_bytes, [Judged(surprise([t], [q]), kl([p], [q])) for t, p, q in found]
        finally:
            loaded.close()

    def compare(self, budget: str, scratch: Path) -> Part:
        room = self.budget(budget)
        fitting = max((text for text in UNIFORM if self._bytes_of(text) <= room), key=self._bytes_of)
        method, even = "rtn" if fitting.startswith("int3") else self.codes, parse_quantization(fitting)
        plain, chosen = scratch / "uniform", scratch / "mixed"
        ready = distill(self.loaded, even, self.learned) if method == "distill" else None
        by = "rtn" if ready else method
        quantize_model(self.loaded, plain, even, method=by, calibration=self.learned, ready=ready)
        start = time.perf_counter()
        found = mixed(self.loaded, [parse_format(text) for text in CANDIDATES], room, self.learned)
        codes = found.codes
        if self.codes == "distill":
            codes = distill(self.loaded, found.quantization, self.learned, start=codes)
        seconds = time.perf_counter() - start
        quantize_model(self.loaded, chosen, found.quantization, ready=codes)
        _, by_uniform = self._price(plain)
        mixed_bytes, by_mixed = self._price(chosen)
        exact = [surprise([text], [logits]) for text, logits in zip(self.judged, self.exact, strict=True)]
        return Part(f"{fitting} by {method}", mixed_bytes, seconds, exact, by_uniform, by_mixed)


def row(name: str, kind: str, budget: str, num_bytes: int, parts: Sequence[Part]) -> dict[str, object]:
    """All parts together; ``gain`` is of the logarithm of perplexity, ``error`` twice its standard error."""
    uniform, mix = ([one for part in parts for one in getattr(part, f"by_{kind}")] for kind in ("uniform", "mixed"))
    gains = [a.nats - b.nats for a, b in zip(uniform, mix, strict=True)]
    return {
        "model": name,
        "text": kind,
        "budget": budget,
        "num_bytes": num_bytes,
        "tokens": len(gains) * LENGTH,
        "exact_perplexity": math.exp(statistics.mean(nats for part in parts for nats in part.exact)),
        "uniform": parts[0].uniform,
        "uniform_perplexity": math.exp(statistics.mean(one.nats for one in uniform)),
        "uniform_kl": statistics.mean(one.kl for one in uniform),
        "mixed_bytes": max(part.mixed_bytes for part in parts),
        "mixed_perplexity": math.exp(statistics.mean(one.nats for one in mix)),
        "mixed_kl": statistics.mean(one.kl for one in mix),
        "gain": statistics.mean(gains),
        "error": 2 * statistics.stdev(gains) / math.sqrt(len(gains)),
        "seconds": max(part.seconds for part in parts),
    }


def stories(data: Path, kind: str) -> str:
    """The head of TinyStories, or fresh ones, the same every time."""
    if kind == "tinystories":
        return gzip.decompress((data / "text/tinystories_train_head.txt.gz").read_bytes()).decode()
    rng, told, count = random.Random(0), list[str](), 0
    with LLM(str(data / "models/bitnet-stories-3M"), memory="1GiB", max_num_seqs=64) as llm:
        while sum(map(len, told)) < FRESH_CHARACTERS:
            openings = [f"Once upon a time there was a {rng.choice(TRAITS)} {rng.choice(HEROES)}." for _ in range(128)]
            params = [SamplingParams(temperature=WARMTH, seed=count + n, max_tokens=LONGEST) for n in range(128)]
            told += [f"{start} {out.text}" for start, out in zip(openings, llm.generate(openings, params), strict=True)]
            count += len(openings)
    return "\n\n".join(told)


def cut(whole: str, part: int, parts: int) -> tuple[str, str]:
    """One of the parts, to judge on, and the others, to learn from."""
    ends = [0, *(whole.index("\n\n", len(whole) * n // parts) for n in range(1, parts)), len(whole)]
    first, last = ends[part], ends[part + 1]
    return whole[first:last], whole[last:] + whole[:first]


def _pieces(ids: list[int]) -> list[list[int]]:
    return [ids[at : at + LENGTH] for at in range(0, len(ids) // LENGTH * LENGTH, LENGTH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="*", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS))
    parser.add_argument("--texts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--codes", choices=("distill", "gptq"), default="distill", help="of both")
    parser.add_argument("--parts", nargs="*", type=int, help="of each text; default: all")
    args = parser.parse_args()
    asked = [(name, kind) for name in args.models for kind in KINDS.get(name, ("tinystories",)) if kind in args.texts]
    for name, kind in asked:
        whole, count = stories(args.data, kind), PARTS[kind]
        chosen = range(count) if args.parts is None else args.parts
        judges = [_Judge(name, args.data, cut(whole, part, count), args.codes) for part in chosen]
        for budget in args.budgets:
            with tempfile.TemporaryDirectory() as scratch:
                parts = [judge.compare(budget, Path(scratch) / str(n)) for n, judge in enumerate(judges)]
            print(json.dumps(row(name, kind, budget, judges[0].budget(budget), parts)), flush=True)
        for judge in judges:
            judge.loaded.close()


if __name__ == "__main__":
    main()
