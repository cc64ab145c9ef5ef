"""What decoding from offloaded KV costs beside resident KV, in speed, bytes moved and memory.

    python -m benchmarks.kv_offload FOLDER_OF_A_MODEL --context 8192 --docs docs/kv-tiers.md

One prompt is computed by three engines: resident, offloaded to memory, offloaded to a folder on disk, whose pools hold
less than a quarter of its KV. Its prefix is found again then, and answers are decoded in turns, exact and with quest.
Seconds a token are those between the first token and the last. ``--cold``: before every token the disk's file is
written out and dropped from the page cache, so that what a step reads comes from the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pagoda import LLM, SamplingParams
from pagoda.bench.kv_report import splice

COLD = "cold disk"
WAYS = ("exact", "quest(pages={pages})")


@dataclass
class Row:
    """One way to decode. Bytes are a token's, read from the tier; ``predicted``: what the method says it reads."""

    place: str
    kv: str
    seconds: list[float] = field(default_factory=list)
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    predicted: float = 0.0
    hits: float | None = None
    same: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_offload", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=float, default=0.1)
    parser.add_argument("--kv-memory", default="24MiB")
    parser.add_argument("--window", default="24MiB")
    parser.add_argument("--disk-folder", type=Path, help="where the disk tier lies (default: a temporary folder)")
    parser.add_argument("--cold", action="store_true", help="a third engine on disk, whose file is in no cache")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.disk_folder) as folder:
        found = measure(args, folder)
    print(json.dumps(found | {"rows": [asdict(row) for row in found["rows"]]}, indent=1))
    if args.docs is not None:
        page = args.docs.read_text(encoding="utf-8")
        args.docs.write_text(splice(page, "offload", markdown(found)), encoding="utf-8")


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    length = args.context
    common: dict[str, Any] = {"memory": "8GiB", "structured_output": False, "max_model_len": length + 512}
    far = {"kv_memory": args.kv_memory, "kv_offload": "512MiB", "kv_window": args.window}
    engines = {
        "resident": LLM(args.model, **common),
        "memory": LLM(args.model, **common, **far),
        "disk": LLM(args.model, **common, **far, kv_offload_dir=folder),
    }
    if args.cold:
        engines[COLD] = LLM(args.model, **common, **far, kv_offload_dir=folder)
    vocab = engines["resident"]._built.loaded.shape.vocab_size
    ids = [random.Random(1).randrange(3, vocab) for _ in range(length)]
    rows, prefill, answers = [], {}, dict[str, list[int]]()
    for place, llm in engines.items():
        llm.generate([[5] * 64], _params(place, "exact", 2))
        before, started = _moved(llm), time.perf_counter()
        llm.generate([ids], _params(place, "exact", 1))
        prefill[place] = {"seconds": time.perf_counter() - started, "moved": _delta(before, _moved(llm))}
        for way in WAYS:
            rows.append(Row(place, way.format(pages=args.pages)))
            _decode(llm, ids, rows[-1], 3)  # what a selection notes of pages, it notes at its first step
    for row in rows:
        row.seconds.clear()
    for _ in range(args.rounds):
        for row in rows:
            tokens = _decode(engines[row.place], ids, row, args.tokens)
            row.same = row.same and answers.setdefault(row.kv, tokens) == tokens
    stats = {place: llm.stats() for place, llm in engines.items()}
    fmt = engines["resident"]._built.sizes.fmt
    found = {
        "context": length,
        "kv_bytes": fmt.blocks_for(length) * fmt.block_bytes,
        "pool_bytes": engines["memory"]._built.sizes.max_blocks * fmt.block_bytes,
        "resident_bytes": {place: _resident(llm) for place, llm in engines.items()},
        "window_bytes": stats["memory"]["kv"]["offload"]["window_bytes"],
        "prefill": prefill,
        "rows": rows,
    }
    for llm in engines.values():
        llm.close()
    return found


def _params(place: str, kv: str, num: int) -> SamplingParams:
    stages = [kv] if place == "resident" else [*([] if kv == "exact" else [kv]), "offload"]
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, kv="+".join(stages))


def _decode(llm: LLM, ids: list[int], row: Row, num: int) -> list[int]:
    """Tokens of an answer; speed and bytes are those of the tokens after the second: a selection looks at all keys
    once.
    """
    seen, times, tokens = list[dict[str, float]](), list[float](), list[int]()
    started = time.perf_counter()
    for output in llm.stream(ids, _params(row.place, row.kv, num)):
        times.append(time.perf_counter() - started)
        tokens = output.token_ids
        seen.append(_moved(llm) | {"pages": llm.stats()["steps"]["pages_read"]})
        if row.place == COLD:
            _drop_from_cache(llm)
        started = time.perf_counter()
    steps = len(times) - 2
    row.seconds.append(sum(times[2:]) / steps)
    moved = _delta(seen[1], seen[-1])
    row.read_bytes, row.written_bytes = moved["read_bytes"] / steps, moved["written_bytes"] / steps
    fmt = llm._built.sizes.fmt
    held = fmt.blocks_for(len(ids) + num // 2) * fmt.block_bytes
    row.predicted = held if row.kv == "exact" else moved["pages"] / steps * fmt.page_bytes
    if moved["pages_asked"]:
        row.hits = moved["hits"] / moved["pages_asked"]
    return list(tokens)


def _drop_from_cache(llm: LLM) -> None:
    llm._built.engine.stores.offloaded.storage.tier.drop_cached()  # type: ignore[union-attr]


def _resident(llm: LLM) -> int:
    """Bytes of pool and window that are in memory."""
    return sum(store.storage.resident_bytes() for store in llm._built.engine.stores)


def _moved(llm: LLM) -> dict[str, float]:
    offload = llm.stats()["kv"]["offload"]
    return {} if offload is None else {name: value for name, value in offload.items() if isinstance(value, int | float)}


def _delta(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    names = ("read_bytes", "written_bytes", "pages", "pages_asked", "hits", "waits", "wait_seconds", "buffers")
    return {name: after.get(name, 0) - before.get(name, 0) for name in names}


def markdown(found: dict[str, Any]) -> str:
    rows: list[Row] = found["rows"]
    base = {row.kv: row.seconds for row in rows if row.place == "resident"}
    lines = [
        f"| {found['context']} tokens, {_mib(found['kv_bytes'])} of KV | tokens/s (spread) | of resident "
        "| read a token | what it reads of KV | found in the window |",
        "| --- |" + " ---: |" * 5,
    ]
    for row in rows:
        rates = sorted(1 / seconds for seconds in row.seconds)
        ratio = statistics.median(b / s for b, s in zip(base[row.kv], row.seconds, strict=True))
        read = "" if row.place == "resident" else _mib(row.read_bytes)
        hits = "" if row.hits is None else f"{row.hits:.0%}"
        lines.append(
            f"| `{row.kv}`, {row.place} | {statistics.median(rates):.1f} ({rates[0]:.1f} to {rates[-1]:.1f}) "
            f"| {ratio:.2f} | {read} | {_mib(row.predicted)} | {hits} |"
        )
    times = ", ".join(f"{place} {one['seconds']:.1f} s" for place, one in found["prefill"].items())
    held = ", ".join(f"{place} {_mib(num)}" for place, num in found["resident_bytes"].items())
    lines += [
        "",
        f"The prompt: {times}. Pools of {_mib(found['pool_bytes'])} and windows of {_mib(found['window_bytes'])} "
        f"where KV is offloaded. Of pool and window the kernel counts as resident: {held}. The tokens were "
        f"{'the same everywhere' if all(row.same for row in rows) else 'not the same'}.",
    ]
    return "\n".join(lines)


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    main()
