"""``python -m benchmarks.ops linear --shape 4864x896 --formats bf16 w8a8``, ``… attention``, ``… all --json ops.json``.

Ways of doing the same are run in turn; medians, and in brackets the least, in microseconds. Tables are markdown. The
last column is the share of what this machine could do at most, measured in the same run: see `frame`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import attention, embedding, experts, linear, moves, norms, rotation, sampling, ternary
from .frame import Limits, Measured, show
from .timing import CLOCKS

OPS = ("linear", "ternary", "experts", "embedding", "attention", "rotation", "moves", "norms", "sampling")
Tables = Iterator[tuple[str, Iterator[Measured]]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="default: torch's")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of one thread's processor")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same there, in seconds")
    add_ops(parser)
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads not in (None, 1):
        parser.error("--clock cpu measures one thread; leave --threads out")
    if args.threads or args.clock == "cpu":
        torch.set_num_threads(args.threads or 1)
    limits = Limits.measure(args.clock)
    print(f"{torch.get_num_threads()} threads, {args.clock} clock, torch {torch.__version__}; {limits}\n")
    found = [line for title, lines in args.tables(args) for line in show(title, lines, limits)]
    if args.json:
        whole = {"threads": torch.get_num_threads(), "clock": args.clock, "limits": vars(limits), "lines": found}
        args.json.write_text(json.dumps(whole, indent=1), encoding="utf-8")


def add_ops(parser: argparse.ArgumentParser) -> None:
    ops = parser.add_subparsers(dest="op", required=True)

    def op(name: str, tables: Callable[[argparse.Namespace], Tables], help: str) -> argparse.ArgumentParser:
        one = ops.add_parser(name, help=help)
        one.set_defaults(tables=tables)
        return one

    products = op("linear", of_linear, "products with packed weights beside torch's linear")
    products.add_argument("--shape", type=_pair, nargs="+", default=[(9728, 896), (896, 4864)], metavar="OUTxIN")
    formats = "as --quantization takes them"
    products.add_argument("--formats", nargs="+", default=["bf16", "w8a8", "w4a8(group=64)"], help=formats)
    products.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 256, 1024])
    few = op("ternary", of_ternary, "products with weights of -1, 0 and 1")
    few.add_argument("--shape", type=_pair, default=(6912, 2560), metavar="OUTxIN")
    few.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 256])
    mixture = op("experts", of_experts, "the experts of a mixture in one call")
    mixture.add_argument("--shape", type=_pair, default=(1408, 1024), metavar="OUTxIN")
    mixture.add_argument("--formats", nargs="+", default=["bf16", "w8a8", "int4"], help=formats)
    table = op("embedding", of_embedding, "rows of a packed embedding")
    table.add_argument("--shape", type=_pair, default=(151936, 896), metavar="VOCABxWIDTH")
    table.add_argument("--formats", nargs="+", default=["bf16", "w8a8", "int4"], help=formats)
    for name, tables, help in (
        ("attention", of_attention, "attention over pages beside torch's over contiguous tensors"),
        ("rotation", of_rotation, "rotary positions, and K and V written into pages"),
    ):
        one = op(name, tables, help)
        one.add_argument("--heads", type=_pair, default=(14, 2), metavar="QxKV")
        one.add_argument("--dim", type=int, default=64)
    moved = op("moves", of_moves, "pages and slots that move beside torch's copy of as many bytes")
    moved.add_argument("--dim", type=int, default=64)
    op("norms", of_norms, "normalizations of rows").add_argument("--dim", type=int, default=896)
    op("sampling", of_sampling, "the next token of rows of logits").add_argument("--vocab", type=int, default=151936)
    ops.add_parser("all", help="every op as it is by default").set_defaults(tables=lambda args: of_all(parser, args))


def of_all(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Tables:
    for name in OPS:
        one = parser.parse_args([name])
        one.clock = args.clock
        yield from one.tables(one)


def of_linear(args: argparse.Namespace) -> Tables:
    for outputs, inputs in args.shape:
        for format in args.formats:
            dtype = "float32" if format == "fp32" else "bfloat16"
            title = f"[{outputs}, {inputs}] {format}, torch in {dtype}"
            yield title, linear.rows((outputs, inputs), format, args.tokens, args.clock)


def of_ternary(args: argparse.Namespace) -> Tables:
    title = f"[{args.shape[0]}, {args.shape[1]}] ternary, torch in bfloat16"
    yield title, ternary.rows(args.shape, args.tokens, args.clock)


def of_experts(args: argparse.Namespace) -> Tables:
    title = (
        f"{experts.NUM_EXPERTS} experts [{args.shape[0]}, {args.shape[1]}], {experts.TOP} a token, torch in bfloat16"
    )
    yield title, experts.rows(args.shape, args.formats, args.clock)


def of_embedding(args: argparse.Namespace) -> Tables:
    yield f"embedding [{args.shape[0]}, {args.shape[1]}]", embedding.rows(args.shape, args.formats, args.clock)


def of_attention(args: argparse.Namespace) -> Tables:
    yield f"attention, {_heads(args)}, bfloat16", attention.rows(args.heads, args.dim, args.clock)


def of_rotation(args: argparse.Namespace) -> Tables:
    yield f"rotation and KV write, {_heads(args)}, bfloat16", rotation.rows(args.heads, args.dim, args.clock)


def of_moves(args: argparse.Namespace) -> Tables:
    yield f"heads of {args.dim} columns, pages of {moves.PAGE_SIZE} slots", moves.rows(args.dim, args.clock)


def of_norms(args: argparse.Namespace) -> Tables:
    yield f"rows of {args.dim}, bfloat16", norms.rows(args.dim, args.clock)


def of_sampling(args: argparse.Namespace) -> Tables:
    yield f"logits of {args.vocab} tokens, float32", sampling.rows(args.vocab, args.clock)


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
