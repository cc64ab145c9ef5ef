"""``python -m benchmarks.ops linear --shape 4864x896 --formats bf16 w8a8``, ``… attention``, ``… all --json ops.json``.

    python -m benchmarks.ops --json build/ops/linear.json linear    # a table printed, and kept
    python -m benchmarks.ops --json build/ops/rest.json rest        # every op but the products
    python -m benchmarks.ops report build/ops/*.json                # docs/ops.md, its drawings, the committed JSON

Ways of doing the same are run in turn: Pagoda's, torch's, oneDNN's with weights that it packed before, and the op's
reference. Medians in microseconds and in brackets the middle half's width in percent of it. Tables are markdown. The
last column is the share of what this machine could do at most, measured in the same run: see `frame`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..arguments import file
from ..machine import describe
from ..page import insert
from ..without_amx import restart_without_amx
from . import attention, embedding, experts, linear, moves, norms, rotation, sampling, ternary
from .frame import Limits, Measured, lines
from .report import head, markdown, others, row
from .results import Line, Results, joined, read_all
from .timing import CLOCKS, keep_memory

ROOT = Path(__file__).parents[2]
Tables = Iterator[tuple[str, Iterator[Measured]]]
"""Titles, and the lines below each."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=None, help="default: torch's")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of one thread's processor")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there, for the report")
    parser.add_argument("--without-amx", action="store_true", help="let the system refuse AMX tiles, to all ways alike")
    add_ops(parser)
    args = parser.parse_args()
    if args.op == "report":
        report(args)
        return
    if args.clock == "cpu" and args.threads not in (None, 1):
        parser.error("--clock cpu measures one thread; leave --threads out")
    if args.without_amx:
        restart_without_amx("benchmarks.ops")
    if args.threads or args.clock == "cpu":
        torch.set_num_threads(args.threads or 1)
    measure(args)


def measure(args: argparse.Namespace) -> None:
    keep_memory()
    limits, started = Limits.measure(args.clock), _now()
    print(f"{torch.get_num_threads()} threads, {args.clock} clock, torch {torch.__version__}; {limits}\n")
    found = []
    for op in args.ops:
        one = args if op == args.op else args.defaults(op)
        for title, measured in TABLES[op](one, args.clock):
            found += show(title, lines(op, title, measured, limits))
    if args.json:
        whole = Results(
            describe(), torch.get_num_threads(), args.clock, torch.__version__, (started, _now()), [vars(limits)], found
        )
        whole.save(args.json)


def show(title: str, found: Iterator[Line]) -> list[Line]:
    """Prints a table, line by line as they come; returns them."""
    kept: list[Line] = []
    print(f"{title}\n")
    for line in found:
        if not kept:
            print("\n".join(head(line, others([line]))))
        kept.append(line)
        print(row(line, others(kept[:1])), flush=True)
    print()
    return kept


def report(args: argparse.Namespace) -> None:
    from .plots import draw

    if args.files:
        whole = joined(map(Results.read, args.files))
        whole.save(args.results / f"{whole.name}.json")
    found = read_all(args.results)
    insert(args.page, markdown(found), "ops")
    for results in found:
        for path in draw(results, args.page.parent / "img"):
            print(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_ops(parser: argparse.ArgumentParser) -> None:
    ops = parser.add_subparsers(dest="op", required=True)

    def op(name: str, help: str) -> argparse.ArgumentParser:
        one = ops.add_parser(name, help=help)
        one.set_defaults(ops=(name,))
        return one

    products = op("linear", "products with packed weights beside torch's and oneDNN's")
    products.add_argument("--shape", type=_pair, nargs="+", default=[(9728, 896), (896, 4864)], metavar="OUTxIN")
    formats = "as --quantization takes them"
    products.add_argument("--formats", nargs="+", default=["bf16", "int8", "w8a8", "int4", "w4a8"], help=formats)
    products.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 256, 1024, 4096])
    few = op("ternary", "products with weights of -1, 0 and 1")
    few.add_argument("--shape", type=_pair, default=(6912, 2560), metavar="OUTxIN")
    few.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 256])
    mixture = op("experts", "the experts of a mixture in one call")
    mixture.add_argument("--shape", type=_pair, default=(1408, 1024), metavar="OUTxIN")
    mixture.add_argument("--formats", nargs="+", default=["bf16", "w8a8", "int4"], help=formats)
    table = op("embedding", "rows of a packed embedding")
    table.add_argument("--shape", type=_pair, default=(151936, 896), metavar="VOCABxWIDTH")
    table.add_argument("--formats", nargs="+", default=["bf16", "w8a8", "int4"], help=formats)
    for name, help in (
        ("attention", "attention over pages beside torch's over contiguous tensors"),
        ("rotation", "rotary positions, and K and V written into pages"),
    ):
        one = op(name, help)
        one.add_argument("--heads", type=_pair, default=(14, 2), metavar="QxKV")
        one.add_argument("--dim", type=int, default=64)
    moved = op("moves", "pages and slots that move beside torch's copy of as many bytes")
    moved.add_argument("--dim", type=int, default=64)
    op("norms", "normalizations of rows").add_argument("--dim", type=int, default=896)
    op("sampling", "the next token of rows of logits").add_argument("--vocab", type=int, default=151936)
    for name, names in (("all", tuple(TABLES)), ("rest", tuple(TABLES)[1:])):
        what = "every op as it is by default" + ("" if name == "all" else ", but the products")
        ops.add_parser(name, help=what).set_defaults(ops=names, defaults=lambda op: parser.parse_args([op]))
    made = ops.add_parser("report", help="the page, drawings and committed JSON from files of --json")
    made.add_argument("files", type=file, nargs="*", help="runs of one machine (default: take the committed JSON)")
    made.add_argument("--page", type=Path, default=ROOT / "docs" / "ops.md")
    made.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder of the committed JSON"
    )


def of_linear(args: argparse.Namespace, clock: str) -> Tables:
    for outputs, inputs in args.shape:
        for format in args.formats:
            title = f"{format}, {outputs} x {inputs}"
            yield title, linear.rows((outputs, inputs), format, args.tokens, clock)


def of_ternary(args: argparse.Namespace, clock: str) -> Tables:
    title = f"ternary, {args.shape[0]} x {args.shape[1]}, torch in bfloat16"
    yield title, ternary.rows(args.shape, args.tokens, clock)


def of_experts(args: argparse.Namespace, clock: str) -> Tables:
    outputs, inputs = args.shape
    title = f"{experts.NUM_EXPERTS} experts of {outputs} x {inputs}, {experts.TOP} a token, torch in bfloat16"
    yield title, experts.rows(args.shape, args.formats, clock)


def of_embedding(args: argparse.Namespace, clock: str) -> Tables:
    yield f"embedding of {args.shape[0]} x {args.shape[1]}", embedding.rows(args.shape, args.formats, clock)


def of_attention(args: argparse.Namespace, clock: str) -> Tables:
    yield f"attention, {_heads(args)}, queries in bfloat16", attention.rows(args.heads, args.dim, clock)


def of_rotation(args: argparse.Namespace, clock: str) -> Tables:
    yield f"rotation and KV write, {_heads(args)}, bfloat16", rotation.rows(args.heads, args.dim, clock)


def of_moves(args: argparse.Namespace, clock: str) -> Tables:
    yield f"heads of {args.dim} columns, pages of {moves.PAGE_SIZE} slots", moves.rows(args.dim, clock)


def of_norms(args: argparse.Namespace, clock: str) -> Tables:
    yield f"rows of {args.dim}, bfloat16", norms.rows(args.dim, clock)


def of_sampling(args: argparse.Namespace, clock: str) -> Tables:
    yield f"logits of {args.vocab} tokens, float32", sampling.rows(args.vocab, clock)


TABLES: dict[str, Callable[[argparse.Namespace, str], Tables]] = {
    "linear": of_linear,
    "ternary": of_ternary,
    "experts": of_experts,
    "embedding": of_embedding,
    "attention": of_attention,
    "rotation": of_rotation,
    "moves": of_moves,
    "norms": of_norms,
    "sampling": of_sampling,
}


def _heads(args: argparse.Namespace) -> str:
    return f"{args.heads[0]} query heads, {args.heads[1]} kv-heads, {args.dim} columns"


def _pair(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; give two numbers, for example 4864x896") from None
    return first, second


if __name__ == "__main__":
    main()
