"""A small mixture of experts with weights that mean something: `python -m benchmarks.small_moe ../shared/data OUT`.

Trains a Qwen3-MoE of 3.4 million parameters (4 layers of 16 experts, 2 for a token) from nothing on books, by
transformers, for as many seconds as are given (one busy core reads 2 to 5 thousand tokens a second), and writes a
folder in the Hugging Face form with the tokenizer of `stories260K`. It is as good as minutes can make it: its router is
skewed and its experts differ as training left them, which random weights cannot say. `held_out.txt` beside it is of
books that it has not read.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

LENGTH, BATCH, PEAK_RATE, HELD_OUT = 128, 8, 3e-3, 4
SHAPE = {
    "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "intermediate_size": 128,
    "num_hidden_layers": 4, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": LENGTH, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    "output_router_logits": True, "router_aux_loss_coef": 0.003,
}  # fmt: skip


def texts(data: Path, seed: int) -> tuple[list[str], list[str]]:
    """Books to read, and the last few, that are not."""
    with lzma.open(data / "text/classic_books.jsonl.xz", "rt", encoding="utf-8") as file:
        books = [re.sub(r"\s+", " ", json.loads(line)["text"]) for line in file]
    random.Random(seed).shuffle(books)
    return books[:-HELD_OUT], books[-HELD_OUT:]


def batches(books: list[str], tokenizer: Tokenizer, seed: int) -> Any:
    """Token ids ``[BATCH, LENGTH]`` from anywhere, for ever."""
    rng = random.Random(seed)
    while True:
        rows = []
        while len(rows) < BATCH:
            book = rng.choice(books)
            at = rng.randrange(max(1, len(book) - 8 * LENGTH))
            ids = tokenizer.encode(book[at : at + 8 * LENGTH]).ids[1:]  # texts are cut anywhere: no mark begins them
            if len(ids) >= LENGTH:
                rows.append(ids[:LENGTH])
        yield torch.tensor(rows)


def train(model: Any, data: Any, seconds: float) -> dict[str, float]:
    """AdamW, a rate that rises for 20 steps and falls to a tenth by a cosine over the time given."""
    from math import cos, pi

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    start, steps, loss = time.perf_counter(), 0, 0.0
    while (spent := time.perf_counter() - start) < seconds:
        rate = PEAK_RATE * min(1, (steps + 1) / 20) * (0.55 + 0.45 * cos(pi * spent / seconds))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = next(data)
        found = model(input_ids=ids, labels=ids)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps, loss = steps + 1, 0.95 * loss + 0.05 * found.loss.item() if steps else found.loss.item()
        if steps % 50 == 0:
            print(json.dumps({"steps": steps, "seconds": round(spent), "loss": round(loss, 3)}), flush=True)
    return {"steps": steps, "tokens": steps * BATCH * LENGTH, "loss": round(loss, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(args.seed)
    tokenizer = args.data / "models/stories260K/tokenizer.json"
    books, held_out = texts(args.data, args.seed)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE))
    report = train(model, batches(books, Tokenizer.from_file(str(tokenizer)), args.seed), args.seconds)
    model.config.output_router_logits = False
    model.save_pretrained(args.out)
    (args.out / "tokenizer.json").write_text(tokenizer.read_text())
    (args.out / "held_out.txt").write_text("\n\n".join(book[20_000:220_000] for book in held_out))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
