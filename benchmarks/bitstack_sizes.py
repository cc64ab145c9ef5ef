"""What each size of a bitstack costs: `python -m benchmarks.bitstack_sizes lantern ../shared/data/text/FILE.txt.gz`.

The model is quantized once (``--format``), loaded once, and resized between one block of each matrix and all of them;
at each size the perplexity of the same pieces of text, by the logarithms of their tokens' probabilities. Prints the
table of docs/weights.md.
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
from pathlib import Path

from pagoda import LLM, SamplingParams
from pagoda.models.load import load_model
from pagoda.models.quantize import quantize_model
from pagoda.weights.quantization import parse_quantization


def pieces(text: str, count: int) -> list[str]:
    """The first stories of a text, as long as a paragraph at least."""
    return [part for part in text.split("\n\n") if len(part) > 100][:count]


def perplexity(llm: LLM, texts: list[str]) -> tuple[float, int]:
    """Of the texts' tokens after each first one, and how many those are."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    found = [
        token.logprob for out in llm.generate(texts, params) for token in out.prompt_logprobs or () if token is not None
    ]
    return math.exp(-sum(found) / len(found)), len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--format", default="bitstack(blocks=8)")
    parser.add_argument("--sizes", type=int, default=9)
    parser.add_argument("--texts", type=int, default=24)
    args = parser.parse_args()
    opened = gzip.open if args.text.suffix == ".gz" else open
    with opened(args.text, "rt", encoding="utf-8") as file:
        texts = pieces(file.read(1 << 20), args.texts)
    with tempfile.TemporaryDirectory() as folder:
        quantize_model(load_model(args.model, quantization="none"), Path(folder, "q"), parse_quantization(args.format))
        with LLM(f"{folder}/q", memory="1GiB", weights="resident") as llm:
            stacks = llm._open().loaded.stacks
            assert stacks is not None, "quantized into something else"
            least, whole = stacks.least_bytes, stacks.bytes_in(None)
            print("| weights | blocks | perplexity |\n| ---: | ---: | ---: |")
            for i in range(args.sizes):
                size = llm.resize_weights(least + (whole - least) * i // (args.sizes - 1))
                found, count = perplexity(llm, texts)
                print(f"| {size / 1e6:.2f} MB | {stacks.num_kept} of {stacks.num_levels} | {found:.2f} |")
            print(f"\n{count} tokens of {args.text.name}")


if __name__ == "__main__":
    main()
