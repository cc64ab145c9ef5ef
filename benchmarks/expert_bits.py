"""Experts in bits of their own against the same bits for all: `python -m benchmarks.expert_bits ../shared/data`.

What they cost is measured on a mixture that means something (`benchmarks.small_moe`, trained first for `--seconds`, or
given by `--trained`): experts in uniform formats, and in formats by `pagoda quantize --method edgemoe` at bytes between
them, everything else exact; perplexity on books that it has not read, with twice the standard error of the difference
from exact over the texts, and KL divergence. What they save is measured on the mixture of `benchmarks.experts`
(`--speed`; random weights, which say nothing of quality): hit rate, bytes read and tokens a second with the same bytes
of cache, the same requests in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import experts
from benchmarks.small_moe import LENGTH, texts
from pagoda.models.decoder import Decoder
from pagoda.models.expert_bits import CANDIDATES, expert_bits
from pagoda.models.load import Loaded, load_model
from pagoda.models.mixed import surprise
from pagoda.models.placement import Room
from pagoda.models.quantize import kl, quantize_model, run
from pagoda.models.shape import ModelShape
from pagoda.weights.quantization import Quantization, parse_format

UNIFORM = ("bf16", "int8", "int4(group=32)", "int4")
BETWEEN = ((0.5, "int8", "int4(group=32)"), (0.25, "int8", "int4(group=32)"), (0.5, "int4(group=32)", "int4"))
"""Budgets: a share of the way down from the first format's bytes to the second's."""
LEARNED_TOKENS, JUDGED_TOKENS = 16_384, 32_768
REQUESTS, STEPS = 5, 48


def uniform(loaded: Loaded, text: str) -> Quantization:
    """All experts in one format, everything else as it is."""
    found = parse_format(text)
    return Quantization(overrides={m.name: found for m in loaded.shape.matrices if m.role == "experts"})


def choices(
    loaded: Loaded, learned: list[list[int]], between: Sequence[tuple[float, str, str]]
) -> dict[str, Quantization]:
    """What is compared, by what it is called."""
    found = {text: uniform(loaded, text) for text in UNIFORM}
    sizes = {text: loaded.shape.weight_bytes(loaded.dtype, q) for text, q in found.items()}
    candidates = [parse_format(text) for text in CANDIDATES]
    for share, more, fewer in between:
        budget = int(sizes[fewer] + share * (sizes[more] - sizes[fewer]))
        chosen = expert_bits(loaded, Quantization(), candidates, budget, learned)
        found[f"edgemoe, {share} between {fewer} and {more}"] = chosen.quantization
    return found


def expert_bytes(loaded: Loaded) -> int:
    """Of all experts, in the formats that they have."""
    return sum(
        count * f.num_bytes(m.rows, m.cols)
        for m in loaded.shape.matrices
        if m.role == "experts"
        for f, count in loaded.quantization.each(m.name, m.role, m.count).items()
        if f is not None
    )


def quality(folder: Path, data: Path, scratch: Path) -> list[dict[str, Any]]:
    exact = load_model(folder, quantization="none")
    read, _ = texts(data, 0)
    learned = _pieces(exact, " ".join(book[30_000:34_000] for book in read[:40]), LEARNED_TOKENS)
    judged = _pieces(exact, (folder / "held_out.txt").read_text(), JUDGED_TOKENS)
    wanted = _logits(exact, judged)
    nats = [surprise([text], [found]) for text, found in zip(judged, wanted, strict=True)]
    rows = [{"experts": "exact", "perplexity": math.exp(statistics.mean(nats))}]
    for name, quantization in choices(exact, learned, BETWEEN).items():
        quantize_model(exact, scratch / name.replace("/", "_"), quantization)
        loaded = load_model(scratch / name.replace("/", "_"))
        logits = _logits(loaded, judged)
        lost = [surprise([t], [found]) - n for t, found, n in zip(judged, logits, nats, strict=True)]
        rows.append({
            "experts": name,
            "expert_bytes": expert_bytes(loaded),
            "perplexity": math.exp(statistics.mean(nats) + statistics.mean(lost)),
            "lost_percent": 100 * statistics.mean(lost),
            "error_percent": 200 * statistics.stdev(lost) / math.sqrt(len(lost)),
            "kl": kl(wanted, logits),
            "formats": str(loaded.quantization),
        })  # fmt: skip
        loaded.close()
    exact.close()
    return rows


def _pieces(loaded: Loaded, text: str, count: int) -> list[list[int]]:
    ids = loaded.tokenizer.encode(text)[:count]
    return [ids[at : at + LENGTH] for at in range(0, len(ids) // LENGTH * LENGTH, LENGTH)]


def _logits(loaded: Loaded, judged: list[list[int]]) -> list[Any]:
    model: Any = loaded.model
    return run(Decoder(model.spec, model.weights(), rope_length=model.rope_length), judged)


def make(work: Path, topics: int) -> None:
    """The mixture of `benchmarks.experts` in every choice of bits, a folder each; those that are there stay."""
    experts.write(work.with_suffix(".plain"), 12.0, topics)
    loaded = load_model(work.with_suffix(".plain"), dtype="bfloat16", quantization="none")
    learned = experts.requests(experts.WARM, STEPS, topics)
    for name, quantization in choices(loaded, learned, BETWEEN[:1]).items():
        if name != "int4" and not (work / name).exists():
            quantize_model(loaded, work / name, quantization)
    loaded.close()


def speed(share: float, topics: int, work: Path) -> dict[str, Any]:
    """Hit rate and speed with the same bytes of cache, ``share`` of what all experts take in bfloat16."""
    if not work.exists():
        make(work, topics)
    requests = experts.requests(experts.WARM + REQUESTS, STEPS, topics)
    shape = ModelShape.from_config(experts.CONFIG)
    cache_bytes = int(share * sum(m.count * m.rows * m.cols * 2 for m in shape.matrices if m.role == "experts"))
    opened = {folder.name: _with_cache(folder, cache_bytes) for folder in sorted(work.iterdir())}
    seconds: dict[str, list[float]] = {name: [] for name in opened}
    before: dict[str, Any] = {}
    for number, tokens in enumerate(requests):
        for name, model in opened.items():
            assert model.experts is not None
            taken = experts.read_request(model, tokens)
            if number >= experts.WARM:
                seconds[name].append(taken)
            else:
                before[name] = replace(model.experts.counters)
    report = {}
    for name, model in opened.items():
        assert model.experts is not None
        assert model.stream is not None
        c, b, times = model.experts.counters, before[name], seconds[name]
        hits, misses = c.hits - b.hits, c.misses - b.misses
        beside = sorted(base / ours for base, ours in zip(seconds["bf16"], times, strict=True))
        report[name] = {
            "expert_bytes": expert_bytes(model), "experts_at_hand": model.stream.expert_slots,
            "hit_rate": round(hits / (hits + misses), 4), "cache_bytes": model.experts.num_bytes,
            "bytes_per_token": (c.bytes_read - b.bytes_read) // (len(times) * STEPS),
            "tokens_per_second": round(STEPS / statistics.median(times), 1),
            "beside_bf16": [round(statistics.median(beside), 2), round(beside[0], 2), round(beside[-1], 2)],
        }  # fmt: skip
        model.close()
    return report


def _with_cache(folder: Path, cache_bytes: int) -> Loaded:
    probe = load_model(folder, weights="stream", room=lambda *_: Room(0, 0))
    assert probe.stream is not None
    room = probe.stream.num_bytes - probe.stream.cache_bytes + cache_bytes
    probe.close()
    return load_model(folder, weights="stream", room=lambda *_: Room(room, room))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trained", type=Path, help="a folder that benchmarks.small_moe wrote")
    parser.add_argument("--seconds", type=float, default=400, help="to train one for, where none is given")
    parser.add_argument("--speed", action="store_true", help="what they save, and not what they cost")
    parser.add_argument("--share", type=float, default=0.25, help="of all experts' bytes in bfloat16, for the cache")
    parser.add_argument("--topics", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where the models of --speed are made, or have been")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.speed:
            print(json.dumps(speed(args.share, args.topics, args.work or Path(scratch) / "made"), indent=1))
            return
        folder = args.trained or Path(scratch) / "trained"
        if args.trained is None:
            command = [sys.executable, "-m", "benchmarks.small_moe", args.data, folder, "--seconds", str(args.seconds)]
            subprocess.run(command, check=True)
        for row in quality(folder, args.data, Path(scratch)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
