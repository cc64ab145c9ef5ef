"""Measures the shipped `lantern` with transformers and writes its model card.

    python tools/eval_lantern.py --data ../shared/data --work .lantern

Writes `evaluation.json` and `README.md` beside the weights. Everything is greedy or seeded: run twice, it writes the
same numbers. About ten minutes on two cores; `--cases 5` for a quick look.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

from lantern.card import write_card  # noqa: E402
from lantern.corpus import load_corpus  # noqa: E402
from lantern.measure import Subject  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "src/pagoda/assets/lantern")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / ".lantern", help="where the story shards are")
    parser.add_argument("--cases", type=int, default=50, help="per distance, form of fact and kind of prompt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    training = json.loads((args.model / "training.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
    shards = sorted((args.work / "stories").glob("*.txt"))[: training["story_shards"]]
    corpus = load_corpus(args.data, shards, training["seed"], book_chars=3_000_000)
    subject = Subject(model, tokenizer, corpus)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": "bfloat16 as shipped, computed in float32",
        "recall": {str(d): subject.recall(d, args.cases) for d in (256, 1024, 1800)},
        "recall_free_answer": {str(d): subject.free_answers(d, max(5, args.cases // 2)) for d in (256, 1024, 1800)},
        "copying": {str(n): subject.words("copy", n, args.cases) for n in (5, 10, 20)},
        "counting_back": {str(n): subject.words("count_back", n, args.cases) for n in (5, 10)},
        "reversing": {str(n): subject.words("reverse", n, args.cases) for n in (4, 8)},
        "held_out": subject.held_out(),
        "samples": subject.samples(),
    }
    (args.model / "evaluation.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_card(args.model, found, training)
    print(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=2))


if __name__ == "__main__":
    main()
