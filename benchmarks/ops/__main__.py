"""``python -m benchmarks.ops linear --shape 4864x896 --formats bf16 w8a8``, ``… attention`` and ``… moves``.

Both ways are run in turn; medians, and in brackets the least, in microseconds. Tables are markdown.
"""

from __future__ import annotations

import argparse

import torch

from . import attention, linear, moves
from .timing import CLOCKS, Times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="default: torch's")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of one thread's processor")
    ops = parser.add_subparsers(dest="op", required=True)
    products = ops.add_parser("linear", help="products with packed weights beside torch's linear")
    products.add_argument("--shape", type=_pair, nargs="+", default=[(9728, 896), (896, 4864)], metavar="OUTxIN")
    formats = "as --quantization takes them"
    products.add_argument("--formats", nargs="+", default=["bf16", "w8a8", "w4a8(group=64)"], help=formats)
    products.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 256, 1024])
    slots = ops.add_parser("attention", help="attention over pages beside torch's over contiguous tensors")
    slots.add_argument("--heads", type=_pair, default=(14, 2), metavar="QxKV")
    slots.add_argument("--dim", type=int, default=64)
    moved = ops.add_parser("moves", help="pages and slots that move beside torch's copy of as many bytes")
    moved.add_argument("--dim", type=int, default=64)
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads not in (None, 1):
        parser.error("--clock cpu measures one thread; leave --threads out")
    if args.threads or args.clock == "cpu":
        torch.set_num_threads(args.threads or 1)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if args.op == "linear":
        for shape in args.shape:
            for format in args.formats:
                show_linear(shape, format, args.tokens, args.clock)
    elif args.op == "moves":
        show_moves(args.dim, args.clock)
    else:
        show_attention(args.heads, args.dim, args.clock)


def show_linear(shape: tuple[int, int], format: str, tokens: list[int], clock: str) -> None:
    print(f"[{shape[0]}, {shape[1]}] {format}, torch in {'float32' if format == 'fp32' else 'bfloat16'}\n")
    ways = "pagoda, us | torch, us | torch / pagoda | torch packed, us | torch packed / pagoda"
    print(f"| tokens | {ways} | GB/s | Gop/s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count, times, num_bytes in linear.rows(shape, format, tokens, clock):
        ours = times["pagoda"].usual
        ops = 2 * count * shape[0] * shape[1]
        packed = times.get("torch packed")
        own = f"{_shown(packed)} | {packed.usual / ours:.2f}" if packed else "- | -"
        rates = f"{num_bytes / ours / 1e9:.1f} | {ops / ours / 1e9:.0f}"
        plain = f"{_shown(times['torch'])} | {times['torch'].usual / ours:.2f}"
        print(f"| {count} | {_shown(times['pagoda'])} | {plain} | {own} | {rates} |", flush=True)
    print()


def show_attention(heads: tuple[int, int], dim: int, clock: str) -> None:
    print(f"{heads[0]} query heads, {heads[1]} kv-heads, {dim} columns, bfloat16\n")
    print("| sequences | queries | slots | pagoda, us | torch, us | torch / pagoda | Gop/s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for batch, times in attention.rows(heads, dim, clock):
        ours = times["pagoda"].usual
        ratio = f"{times['torch'].usual / ours:.2f} | {batch.flops(heads[0], dim) / ours / 1e9:.0f}"
        sizes = f"| {batch.num_seqs} | {batch.queries} | {batch.length} |"
        print(f"{sizes} {_shown(times['pagoda'])} | {_shown(times['torch'])} | {ratio} |", flush=True)


def show_moves(dim: int, clock: str) -> None:
    print(f"heads of {dim} columns, pages of {moves.PAGE_SIZE} slots\n")
    print("| what moves | pages | MiB | pagoda, us | torch, us | torch / pagoda | GB/s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for move, times in moves.rows(dim, clock):
        ours = times["pagoda"].usual
        ratio = f"{times['torch'].usual / ours:.2f} | {2 * move.moved_bytes / ours / 1e9:.1f}"
        sizes = f"| {move.what} | {move.format} | {move.moved_bytes >> 20} |"
        print(f"{sizes} {_shown(times['pagoda'])} | {_shown(times['torch'])} | {ratio} |", flush=True)


def _shown(times: Times) -> str:
    return f"{times.usual * 1e6:.0f} ({times.least * 1e6:.0f})"


def _pair(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; give two numbers, for example 4864x896") from None
    return first, second


if __name__ == "__main__":
    main()
