"""What KV costs that leaves the pool and comes back: in runs or page by page, read or computed, between turns.

    python -m benchmarks.kv_swap runs --folder DIR           files of single pages beside runs: fsyncs, time, bytes
    python -m benchmarks.kv_swap lengths --model lantern     a prompt read back beside the same computed, by length
    python -m benchmarks.kv_swap turns --model lantern       conversations that take turns in a pool too small for all

``--model 0.5B`` is a random model of that shape, ``--docs PAGE`` rewrites the part's table in the page, and
``--folder`` is where the disk's files lie (the temporary folder by default). What is compared runs in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kv_selection import write_model
from pagoda import LLM, SamplingParams
from pagoda.bench.kv_report import splice
from pagoda.core.units import format_bytes
from pagoda.kv.tiers._base import Name
from pagoda.kv.tiers._files import Files
from pagoda.kv.tiers._form import ExactForm
from pagoda.kv.tiers.disk import DiskTier

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kv_swap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=125, help="runs: pages of tokens")
    parser.add_argument("--block-bytes", type=int, default=196_608, help="runs: of each (16 tokens of a 0.5B shape)")
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 256, 1024, 2000])
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=200, help="turns: tokens that a user says")
    parser.add_argument("--answer", type=int, default=50)
    parser.add_argument("--docs", type=Path)
    args = parser.parse_args()
    measure, table = PARTS[args.part]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        args.folder = Path(folder)
        rows = measure(args)
    print(json.dumps(rows, indent=1))
    print(table(args, rows))
    if args.docs:
        page = args.docs.read_text(encoding="utf-8")
        args.docs.write_text(splice(page, f"swap {args.part}", table(args, rows)), encoding="utf-8")


# Runs ---------------------------------------------------------------------------------------------------------------


class Counting(Files):
    """Files written, each with one fsync, and files opened to be read."""

    num_written = num_read = 0

    def read(self, path: Path, choose: Callable[[bytes], tuple[int, int]] | None = None) -> bytes:
        self.num_read += 1
        return super().read(path, choose)

    def write_whole(self, paths: Sequence[Path], parts: list[bytes]) -> None:
        self.num_written += 1
        super().write_whole(paths, parts)


def runs(args: argparse.Namespace) -> Rows:
    """Writes and reads one text page by page, and in runs."""
    taken: dict[str, list[tuple[int, float, float, float, float]]] = {"page by page": [], "in runs": []}
    for number in range(args.rounds):
        pages = text_of(args.blocks, args.block_bytes, number)
        for way, most in (("page by page", 1), ("in runs", args.blocks)):
            files = Counting()
            tier = DiskTier(args.folder / f"{way} {number}", 64 * args.blocks * args.block_bytes, files=files)
            tier.form = ExactForm(2, args.block_bytes)
            pieces = [pages[at : at + most] for at in range(0, len(pages), most)]
            wrote = timed(lambda tier=tier, pieces=pieces: [tier.write(piece) for piece in pieces])
            read = timed(lambda tier=tier, pages=pages, most=most: read_all(tier, pages, most))
            taken[way].append((files.num_written, *wrote, *read))
    size = args.blocks * args.block_bytes
    return [
        {
            "way": way, "files": found[0][0], "bytes": size,
            **{
                name: statistics.median(one[at] for one in found)
                for at, name in enumerate(("write_seconds", "write_cpu", "read_seconds", "read_cpu"), 1)
            },
        }
        for way, found in taken.items()
    ]  # fmt: skip


def text_of(count: int, block_bytes: int, seed: int) -> list[tuple[Name, bytes]]:
    """Pages of one text: normal numbers in bfloat16, as incompressible as KV is."""
    rng, pages, parent = np.random.default_rng(seed), list[tuple[Name, bytes]](), DiskTier.root_key(b"")
    for _ in range(count):
        tokens = rng.bytes(64)
        raw = (rng.standard_normal(block_bytes // 2, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        key = DiskTier.child_key(parent, tokens)
        pages.append((Name(key, parent, tokens), raw))
        parent = key
    return pages


def read_all(tier: DiskTier, pages: list[tuple[Name, bytes]], most: int) -> None:
    names, at = [name for name, _ in pages], 0
    while at < len(names):
        found = tier.read(names[at : at + most])
        assert found == [raw for _, raw in pages[at : at + len(found)]]
        at += len(found)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and those of the processor."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu


def runs_table(args: argparse.Namespace, rows: Rows) -> str:
    size = format_bytes(rows[0]["bytes"])
    lines = [
        f"| {args.blocks} pages, {size} | files, fsyncs | written, s (processor) | MB/s | read, s (processor) | MB/s |",
        "| --- |" + " ---: |" * 5,
    ]
    for row in rows:
        write, read = (
            f"{row[f'{what}_seconds']:.3f} ({row[f'{what}_cpu']:.3f}) | "
            f"{row['bytes'] / row[f'{what}_seconds'] / 1e6:.0f}"
            for what in ("write", "read")
        )
        lines.append(f"| {row['way']} | {row['files']} | {write} | {read} |")
    return "\n".join(lines)


# Read or computed ---------------------------------------------------------------------------------------------------


@contextmanager
def opened(args: argparse.Namespace, place: str, **options: Any) -> Iterator[LLM]:
    """An engine that keeps pages in that place: ``none``, ``host``, ``disk``."""
    kept = {
        "none": {},
        "host": {"kv_host": "512MiB"},
        "disk": {"kv_dir": str(args.folder / "kept"), "disk": "2GiB"},
    }[place]
    model = args.model
    if model == "0.5B":
        model = str(args.folder / "model")
        if not os.path.exists(model):
            os.makedirs(model)
            write_model(Path(model))
    with LLM(model, memory=args.memory, structured_output=False, **kept, **options) as llm:
        first_token(llm, [5] * 64)  # touches code and memory
        yield llm


def first_token(llm: LLM, ids: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt's were found."""
    started = time.perf_counter()
    output = llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))[0]
    return time.perf_counter() - started, output.usage.cached_tokens


def lengths(args: argparse.Namespace) -> Rows:
    """By length: computed, then given up and read back from memory and from the disk; and what the cost model says."""
    rows: Rows = []
    with ExitStack() as stack:
        engines = {place: stack.enter_context(opened(args, place)) for place in ("host", "disk")}
        for length in args.lengths:
            computed, read = list[float](), {place: list[float]() for place in engines}
            for number in range(args.rounds):
                ids = [random.Random(f"{length} {number}").randrange(3, 2000) for _ in range(length)]
                for place, llm in engines.items():
                    engine = llm._built.engine
                    seconds, cached = first_token(llm, ids)
                    assert cached == 0
                    computed.append(seconds)
                    assert engine.persistence.settle(60)
                    engine.manager.clear_prefix()
                    rate, engine._tokens_per_second = engine._tokens_per_second, 0.0  # which reads in any case
                    seconds, cached = first_token(llm, ids)
                    engine._tokens_per_second = rate
                    assert cached >= length - 17, f"{cached} of {length} tokens were read"
                    read[place].append(seconds)
            row: dict[str, Any] = {"length": length, "computed": statistics.median(computed)}
            for place, llm in engines.items():
                engine = llm._built.engine
                cost, num = engine.persistence._cost, (length - 1) // engine.manager.fmt.page_size
                row[place] = statistics.median(read[place])
                row[f"{place}_read"] = not cost.computing_is_faster({place: num}, engine._tokens_per_second)
                row[f"{place}_bytes_per_second"] = cost.bytes_per_second[place]
            rows.append(row)
    return rows


def lengths_table(args: argparse.Namespace, rows: Rows) -> str:
    lines = [
        f"| {args.model}: tokens | computed in s | from memory, of that | from disk, of that | the cost model |",
        "| ---: |" + " ---: |" * 3 + " --- |",
    ]
    for row in rows:
        said = {place: "reads" if row[f"{place}_read"] else "computes" for place in ("host", "disk")}
        both = said["host"] if said["host"] == said["disk"] else f"{said['host']}; from disk {said['disk']}"
        lines.append(
            f"| {row['length']} | {row['computed']:.3f} | {row['host'] / row['computed']:.2f} "
            f"| {row['disk'] / row['computed']:.2f} | {both} |"
        )
    return "\n".join(lines)


# Turns --------------------------------------------------------------------------------------------------------------


def turns(args: argparse.Namespace) -> Rows:
    """Conversations that take turns, each in engines with no tier, memory, and disk; a pool holds a third of them."""
    longest = args.turns * (args.prompt + args.answer)
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        with opened(args, "none") as llm:
            bytes_per_token = llm._built.sizes.fmt.bytes_per_token
        pool = max(1.2 * longest, args.conversations * longest / 3) * bytes_per_token
        options = {"kv_memory": int(pool), "max_model_len": longest + 64}
        engines = {place: stack.enter_context(opened(args, place, **options)) for place in ("none", "host", "disk")}
        texts = {place: [list[int]() for _ in range(args.conversations)] for place in engines}
        for turn in range(args.turns):
            for number in range(args.conversations):
                said = [random.Random(f"{turn} {number}").randrange(3, 2000) for _ in range(args.prompt)]
                for place, llm in engines.items():
                    ids = texts[place][number] + said
                    seconds, cached = first_token(llm, ids)
                    if turn:
                        row = rows.setdefault(
                            place, {"place": place, "asked": 0, "known": 0, "found": 0, "seconds": []}
                        )
                        row["asked"] += len(ids)
                        row["known"] += len(ids) - len(said)
                        row["found"] += cached
                        row["seconds"].append(seconds)
                    params = SamplingParams(temperature=0, max_tokens=args.answer, ignore_eos=True)
                    texts[place][number] = ids + llm.generate([ids], params)[0].outputs[0].token_ids
        for place in engines:
            assert texts[place] == texts["none"], "another answer"
    base = rows["none"]["seconds"]
    for row in rows.values():
        row["of_none"] = statistics.median(mine / other for mine, other in zip(row["seconds"], base, strict=True))
        row["seconds"] = statistics.median(row["seconds"])
        row["pool_of_all"] = pool / bytes_per_token / (args.conversations * longest)
    return list(rows.values())


def turns_table(args: argparse.Namespace, rows: Rows) -> str:
    lines = [
        f"| {args.model}: kept in | prompt tokens found | of earlier turns' | first token, s | of that without |",
        "| --- |" + " ---: |" * 4,
    ]
    names = {"none": "the pool alone", "host": "`--kv-host`", "disk": "`--kv-dir`"}
    for row in rows:
        lines.append(
            f"| {names[row['place']]} | {row['found'] / row['asked']:.0%} | {row['found'] / row['known']:.0%} "
            f"| {row['seconds']:.3f} | {row['of_none']:.2f} |"
        )
    return "\n".join(lines)


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Rows], Callable[[argparse.Namespace, Rows], str]]] = {
    "runs": (runs, runs_table),
    "lengths": (lengths, lengths_table),
    "turns": (turns, turns_table),
}

if __name__ == "__main__":
    main()
