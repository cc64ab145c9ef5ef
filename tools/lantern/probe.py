"""A look at the model while it trains: recall by distance and form, and the loss on stories it never saw."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lantern.model import Llama
from lantern.tasks import TaskMix, sentences
from lantern.tokenizer import ASSISTANT, BOS, END, USER
from pagoda.bench.quality.facts import FORMS
from pagoda.bench.quality.recall import Wrap, recall_case

CASES = 24


@torch.inference_mode()
def probe(model: Llama, mix: TaskMix, length: int) -> dict[str, float]:
    """Exact match of the whole value (argmax at each of its tokens), `CASES` cases for each distance and form."""
    filler = [mix.encode(s) for story in mix.corpus.held_stories for s in sentences(story)]
    device = next(model.parameters()).device
    found: dict[str, float] = {}
    for distance in (100, 220, 450, 950, 1800):
        if distance > length:
            break
        for name, wrap in {"text": Wrap((BOS,)), "chat": Wrap((BOS, USER), (END, ASSISTANT))}.items():
            hits = []
            for seed in range(CASES):
                form = list(FORMS)[seed % len(FORMS)]
                case = recall_case(
                    seed, mix.encode, filler, distance=distance, depth=20, forms=(form,), wrap=wrap, ask=name == "chat"
                )
                ids = torch.tensor([case.prompt_ids + case.answer_ids], device=device)
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    guess = model(ids[:, :-1])[0, len(case.prompt_ids) - 1 :].argmax(-1)
                hits.append(guess.tolist() == list(case.answer_ids))
                found[f"{name}_{form}_{distance}"] = found.get(f"{name}_{form}_{distance}", 0) + hits[-1]
            found[f"{name}_{distance}"] = round(sum(hits) / CASES, 3)
    total, count = 0.0, 0
    for story in mix.corpus.held_stories[:32] + mix.corpus.held_real:
        ids = torch.tensor([[BOS, *mix.encode(story)]], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(ids[:, :-1]).float()
        total += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    found["story_nats"] = round(total / count, 4)
    return found
