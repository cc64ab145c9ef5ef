"""Trains `lantern`, the embedded model, from nothing: stories sampled, tokenizer, phases of growing
length, files written.

    python tools/train_lantern.py --data ../shared/data --work .lantern --out src/pagoda/assets/lantern

One command; run again, it continues (finished story shards, the tokenizer and the last checkpoint are kept in --work).
Afterwards `python tools/eval_lantern.py` measures the result and writes the model card.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]  # works from a bare clone, before anything is installed

from lantern.corpus import Corpus, load_corpus  # noqa: E402
from lantern.model import Llama, Shape, export  # noqa: E402
from lantern.recipe import NOTES, PHASES  # noqa: E402
from lantern.story_sampler import sample_shards  # noqa: E402
from lantern.tasks import TaskMix, task_texts  # noqa: E402
from lantern.tokenizer import train_tokenizer, write_tokenizer  # noqa: E402
from lantern.trainer import Settings, Trainer  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="data folder (text/, models/)")
    parser.add_argument("--work", type=Path, default=ROOT / ".lantern", help="shards, checkpoints and log")
    parser.add_argument("--out", type=Path, default=ROOT / "src/pagoda/assets/lantern", help="where the model goes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--story-shards", type=int, default=22, help="of about 0.26 MB of sampled stories each")
    # Several processes of one thread each, not one of several: threads wait for each other at every operation, and
    # beside other work on the machine that made a step 2 to 8 times as long (measured on two cores).
    parser.add_argument("--workers", type=int, default=0, help="CPU processes that share each step (0: one a core)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads of each worker (0: cores / workers)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens of every phase (0.001: a test)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the step; needs a C++ compiler")
    parser.add_argument("--export-only", action="store_true", help="write the last checkpoint to --out and stop")
    return parser.parse_args()


def prepared_tokenizer(args: argparse.Namespace, corpus: Corpus, shape: Shape) -> Tokenizer:
    path = args.work / "tokenizer.json"
    if not path.exists():
        texts = [*corpus.stories, *corpus.real * 2, *corpus.books[:300], *task_texts(args.seed)]
        train_tokenizer(texts, shape.vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def write_model(model: Llama, tokenizer: Tokenizer, trainer: Trainer, args: argparse.Namespace) -> None:
    export(model, args.out)
    write_tokenizer(tokenizer, args.out, model.shape.context)
    run = {
        "seed": args.seed,
        "tokens": trainer.tokens,
        "hours": round(trainer.seconds / 3600, 2),
        "story_shards": args.story_shards,
        "notes": NOTES,
        "shape": asdict(model.shape),
        "phases": [{"length": p.length, "tokens": p.tokens, "shares": p.shares} for p in trainer.phases],
    }
    (args.out / "training.json").write_text(json.dumps(run, indent=2) + "\n")


def train(rank: int, args: argparse.Namespace, shards: list[Path]) -> None:
    """One worker. Rank 0 shows progress and writes; the others only compute their share of each step."""
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        rendezvous = f"file://{args.work.resolve()}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=args.workers)
    corpus = load_corpus(args.data, shards, args.seed, book_chars=3_000_000)
    shape = Shape()
    tokenizer = prepared_tokenizer(args, corpus, shape)
    torch.manual_seed(args.seed)
    model = Llama(shape).to(args.device)
    phases = [p.scaled(args.scale) for p in PHASES]
    settings = Settings(seed=args.seed, compile=args.compile)
    settings = replace(settings, decay_tokens=int(settings.decay_tokens * args.scale))
    trainer = Trainer(model, TaskMix(corpus, tokenizer), phases, settings, args.work, rank, args.workers)
    trainer.resume()
    if not args.export_only:
        columns = (TextColumn("{task.fields[note]}"), BarColumn(), TextColumn("{task.percentage:>4.1f}%"))
        with Progress(*columns, TimeRemainingColumn(), disable=rank > 0) as progress:
            task = progress.add_task("", total=trainer.total_tokens, completed=trainer.tokens, note="training")

            def on_step(tokens: int, row: dict[str, float]) -> None:
                note = f"length {row['length']} loss {row['loss']:.3f} answers {row['answer_loss']:.3f}"
                progress.update(task, completed=tokens, note=note)

            # Workers outlive a parent that is killed: they look for it before each step and stop without it.
            parent = os.getppid()
            trainer.run(on_step, stop=lambda: args.workers > 1 and os.getppid() != parent)
    if rank == 0:
        write_model(model, tokenizer, trainer, args)


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1
    if args.device != "cpu" or args.export_only:
        args.workers = 1
    args.workers = args.workers or min(cores, 4)
    args.threads = args.threads or max(1, cores // args.workers)
    with Progress() as progress:
        task = progress.add_task("sampling stories", total=args.story_shards)
        shards = sample_shards(
            args.data / "models/bitnet-stories-3M",
            args.work / "stories",
            shards=args.story_shards,
            rows=160,
            rounds=3,
            tick=lambda: progress.advance(task),
        )
    (args.work / "rendezvous").unlink(missing_ok=True)
    if args.workers == 1:
        train(0, args, shards)
    else:
        prepared_tokenizer(args, load_corpus(args.data, shards, args.seed, book_chars=3_000_000), Shape())
        # Keep freed activations in the process: returning them to the kernel costs 37,000 page faults a second.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(8 << 30))
        torch.multiprocessing.spawn(train, (args, shards), nprocs=args.workers)


if __name__ == "__main__":
    main()
