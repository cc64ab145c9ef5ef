"""Bits by matrix against the same bits everywhere, at equal bytes: `python -m benchmarks.mixed_bits ../shared/data`.

Every real model that is there, at the bytes of a uniform format and between two of them. Both take their codes by gptq
from the same stories; both are written and loaded again as `pagoda quantize` does; perplexity is judged on stories that
neither has seen. The uniform model is the largest of those that fit the bytes. What is between the two is given with
twice its standard error over the judged texts, which are the same.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.weight_prices import texts
from pagoda.models.decoder import Decoder
from pagoda.models.load import load_model
from pagoda.models.mixed import CANDIDATES, mixed, surprise
from pagoda.models.quantize import kl, quantize_model, run
from pagoda.weights.quantization import parse_format, parse_quantization

TOKENS = {"lantern": 26_624, "stories260K": 32_768, "bitnet-stories-3M": 8192}
"""Model -> tokens that codes and bits are chosen on."""
BUDGETS = ("int4", "int4(group=32)", "int4(group=32) + int8", "int3(rank=0)")
UNIFORM = ("int8", "int4(group=32)", "int4", "int3(rank=0)")
LENGTH = 256  # of a judged text


@dataclass(frozen=True, slots=True)
class Row:
    """One model at one budget; ``gain`` is of the logarithm of perplexity, ``error`` twice its standard error."""

    model: str
    budget: str
    num_bytes: int
    exact_perplexity: float
    uniform: str
    uniform_perplexity: float
    uniform_kl: float
    mixed_bytes: int
    mixed_perplexity: float
    mixed_kl: float
    gain: float
    error: float
    seconds: float


class _Judge:
    """One model and what is asked of its quantized copies."""

    def __init__(self, path: str, learned: Path, judged: Path, num_learned: int, num_judged: int) -> None:
        self.path = path
        self.loaded = load_model(path, quantization="none")
        ids = {file: self.loaded.tokenizer.encode(file.read_text()) for file in (learned, judged)}
        self.learned = _pieces(ids[learned][:num_learned])
        self.judged = _pieces(ids[judged][:num_judged])
        self.exact = self._logits(self.loaded)
        self.exact_perplexity = math.exp(surprise(self.judged, self.exact))

    def _logits(self, loaded: Any) -> list[Any]:
        model = loaded.model
        return run(Decoder(model.spec, model.weights(), rope_length=model.rope_length), self.judged)

    def bytes_of(self, text: str) -> int:
        return self.loaded.shape.weight_bytes(self.loaded.dtype, parse_quantization(text))

    def budget(self, text: str) -> int:
        """Bytes of a format, or half way between two."""
        return sum(map(self.bytes_of, parts := text.split(" + "))) // len(parts)

    def price(self, folder: Path) -> tuple[int, float, list[float]]:
        """Bytes, KL divergence, and nats a token of every judged text, of a model written to ``folder``."""
        loaded = load_model(folder)
        try:
            logits = self._logits(loaded)
            nats = [surprise([text], [found]) for text, found in zip(self.judged, logits, strict=True)]
            return loaded.model.weight_bytes, kl(self.exact, logits), nats
        finally:
            loaded.close()

    def compare(self, name: str, budget: str, scratch: Path) -> Row:
        room = self.budget(budget)
        fitting = max((text for text in UNIFORM if self.bytes_of(text) <= room), key=self.bytes_of)
        method = "rtn" if fitting.startswith("int3") else "gptq"
        plain, chosen = scratch / f"{budget} uniform", scratch / f"{budget} mixed"
        quantize_model(self.loaded, plain, parse_quantization(fitting), method=method, calibration=self.learned)
        start = time.perf_counter()
        found = mixed(self.loaded, [parse_format(text) for text in CANDIDATES], room, self.learned)
        seconds = time.perf_counter() - start
        quantize_model(self.loaded, chosen, found.quantization, ready=found.codes)
        _, uniform_kl, uniform = self.price(plain)
        mixed_bytes, mixed_kl, nats = self.price(chosen)
        gains = [a - b for a, b in zip(uniform, nats, strict=True)]
        error = 2 * statistics.stdev(gains) / math.sqrt(len(gains))
        return Row(
            model=name,
            budget=budget,
            num_bytes=room,
            exact_perplexity=self.exact_perplexity,
            uniform=f"{fitting} by {method}",
            uniform_perplexity=math.exp(statistics.mean(uniform)),
            uniform_kl=uniform_kl,
            mixed_bytes=mixed_bytes,
            mixed_perplexity=math.exp(statistics.mean(nats)),
            mixed_kl=mixed_kl,
            gain=statistics.mean(gains),
            error=error,
            seconds=seconds,
        )


def _pieces(ids: list[int]) -> list[list[int]]:
    return [ids[at : at + LENGTH] for at in range(0, len(ids) // LENGTH * LENGTH, LENGTH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="*", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS))
    parser.add_argument("--tokens", type=int, default=16_384, help="that are judged")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        judged, learned = texts(args.data, Path(scratch), characters=args.tokens * 5)
        for name in args.models:
            path = name if name == "lantern" else str(args.data / "models" / name)
            judge = _Judge(path, learned, judged, TOKENS[name], args.tokens)
            for budget in args.budgets:
                print(json.dumps(asdict(judge.compare(name, budget, Path(scratch) / name))), flush=True)
            judge.loaded.close()


if __name__ == "__main__":
    main()
