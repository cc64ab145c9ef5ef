"""What kept prefixes take on disk by ``--kv-dir-codec``, how soon they are there, and what is lost.

    python -m benchmarks.kv_disk_codecs lantern --text ../shared/data/text/tinystories_train_head.txt.gz
    python -m benchmarks.kv_disk_codecs FOLDER --seeds 4 --length 2000 --out docs/kv-tiers.md

For every codec one engine computes prompts and keeps them, another reads them. Told are the bytes on disk, the time to
the first token beside that of computing it, and what became of the next tokens: the KL divergence of distributions
over the 20 likeliest of both and the rest (a lower bound), up to the first token that differs, and the share of answers
that are the same. ``--seeds N``: N prompts of random tokens, for bytes and times of a model of random weights.
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
from pathlib import Path
from typing import Any

from pagoda import LLM, SamplingParams
from pagoda.bench.kv_report import splice
from pagoda.engine.outputs import RequestOutput

CODECS = ("exact", "int8", "cachegen(step=0.1)", "cachegen", "cachegen(step=0.5)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_disk_codecs", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, help="text to cut prompts from (.gz too)")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--length", type=int, default=1000, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--codecs", nargs="*", default=list(CODECS))
    parser.add_argument("--out", type=Path, help="page whose table is rewritten")
    args = parser.parse_args()
    rows = [measure(args, codec) for codec in args.codecs]
    text = markdown(Path(args.model).name, rows)
    print(text)
    if args.out:
        name = "codecs" if args.text else "codec times"
        args.out.write_text(splice(args.out.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def measure(args: argparse.Namespace, codec: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"memory": args.memory, "structured_output": False}
        with LLM(args.model, kv_dir=folder, kv_dir_codec=codec, **options) as llm:
            asked, fmt = prompts(args, llm), llm._built.sizes.fmt
            computed, computing = answers(llm, asked, args.output if args.text else 1)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.kv"))
        pages = len(list(Path(folder).rglob("*.kv")))
        with LLM(args.model, kv_dir=folder, kv_dir_codec=codec, **options) as llm:
            read, reading = answers(llm, asked, args.output if args.text else 1)
    cached = min(output.usage.cached_tokens for output in read)
    assert cached >= args.length - 17, f"{cached} of {args.length} tokens were read"
    kls = [kl for one, other in zip(computed, read, strict=True) for kl in divergences(one, other)]
    same = sum(a.token_ids == b.token_ids for a, b in zip(computed, read, strict=True))
    row = {
        "codec": codec, "prompts": len(asked), "bytes_per_token": size / (pages * fmt.page_size),
        "in_memory": fmt.bytes_per_token, "read_over_computed": reading / computing, "reading": reading,
        "kl": statistics.fmean(kls) if args.text else None, "positions": len(kls), "same": same / len(asked),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def prompts(args: argparse.Namespace, llm: LLM) -> list[list[int]]:
    if not args.text:
        vocab = llm._built.loaded.shape.vocab_size
        return [[random.Random(n).randrange(3, vocab) for _ in range(args.length)] for n in range(args.seeds)]
    with gzip.open(args.text, "rt") if args.text.suffix == ".gz" else open(args.text, encoding="utf-8") as file:
        ids = llm._built.loaded.tokenizer.encode(file.read())
    return [ids[at : at + args.length] for at in range(0, len(ids) - args.length, args.length)][: args.prompts]


def answers(llm: LLM, asked: list[list[int]], num: int) -> tuple[list[RequestOutput], float]:
    """Greedy ones, one after another, and the median of the seconds to the first token."""
    llm.generate([[5] * 64], SamplingParams(temperature=0, max_tokens=2))  # touches code and memory
    outputs, firsts = [], []
    for ids in asked:
        started = time.perf_counter()
        llm.generate([ids], SamplingParams(temperature=0, max_tokens=1))
        firsts.append(time.perf_counter() - started)
        params = SamplingParams(temperature=0, max_tokens=num, logprobs=20, ignore_eos=True)
        outputs.append(llm.generate([ids], params)[0])
    return outputs, statistics.median(firsts)


def divergences(exact: RequestOutput, near: RequestOutput) -> list[float]:
    """Nats at each position up to the first where another token was chosen, that one included."""
    found = []
    one, other = exact.outputs[0], near.outputs[0]
    for p, q, a, b in zip(one.logprobs or [], other.logprobs or [], one.token_ids, other.token_ids, strict=True):
        found.append(divergence(dict(p.top), dict(q.top)))
        if a != b:
            break
    return found


def divergence(p: dict[int, float], q: dict[int, float]) -> float:
    both = p.keys() & q.keys()
    total = sum(math.exp(p[t]) * (p[t] - q[t]) for t in both)
    rest_p, rest_q = (max(1e-9, 1 - sum(math.exp(one[t]) for t in both)) for one in (p, q))
    return max(0.0, total + rest_p * math.log(rest_p / rest_q))


def markdown(model: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {model}: on disk | bytes a token | of those in memory | first token, of computing it | KL, nats | "
        "same answers |",
        "| --- |" + " ---: |" * 5,
    ]
    for row in rows:
        kl = "" if row["kl"] is None else f"{row['kl']:.4f}"
        same = "" if row["kl"] is None else f"{row['same']:.0%}"
        lines.append(
            f"| `{row['codec']}` | {row['bytes_per_token']:.0f} | {row['bytes_per_token'] / row['in_memory']:.2f} "
            f"| {row['read_over_computed']:.2f} | {kl} | {same} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
