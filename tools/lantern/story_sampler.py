"""Samples simple stories from a small story model, in shards that are kept.

The data folder holds only about 210 real TinyStories stories, too few to learn grammar from. The 3.3M-parameter
`bitnet-stories-3M` (MIT, trained on TinyStories) writes more of them. One shard = one seed = one text file, so an
interrupted run continues where it was, and shard i is the same on every machine with the same torch version.

The loop keeps its own KV cache of plain tensors and drops finished rows as it goes: 7,000 characters a second on two
cores (float32; bfloat16 is 8 % slower there).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from lantern.words import ADJECTIVES, HEROES, NAMES, THINGS

BOS = 1  # begins a story and, predicted, ends it
MAX_NEW = 400
# The first shards are cool: clean grammar, little variety. A student of these alone is too sure of itself where real
# stories differ (4.1 nats a token on TinyStories against 1.3 on its own kind), so the others are warmer.
COOL, COOL_SHARDS, WARM = 0.6, 16, 0.85
SEPARATOR = "\n\n---\n\n"


class StoryModel:
    """BitNet decoder with a growing batch cache: (layers) x [rows, kv_heads, max_len, head_dim]."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.dtype = dtype
        half = self.config["head_dim"] // 2
        freqs = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angles = torch.arange(self.config["max_position_embeddings"])[:, None] * freqs
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weights[name], self.config["rms_norm_eps"])

    def step(self, ids: torch.Tensor, position: int, cache: list[list[torch.Tensor]]) -> torch.Tensor:
        """One token for every row; returns float logits [rows, vocab] and writes slot `position` of the cache."""
        c, w = self.config, self.weights
        rows, heads, kv_heads, dim = ids.shape[0], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        cos, sin = self.cos[position], self.sin[position]

        def rotate(x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = self._norm(x, p + "input_layernorm.weight")
            q = rotate(F.linear(h, w[p + "self_attn.q_proj.weight"]).view(rows, heads, dim))
            keys, values = cache[layer]
            keys[:, :, position] = rotate(F.linear(h, w[p + "self_attn.k_proj.weight"]).view(rows, kv_heads, dim))
            values[:, :, position] = F.linear(h, w[p + "self_attn.v_proj.weight"]).view(rows, kv_heads, dim)
            q = q.view(rows, kv_heads, heads // kv_heads, dim)
            scores = (q @ keys[:, :, : position + 1].transpose(-1, -2)).float() / math.sqrt(dim)
            out = scores.softmax(-1).to(self.dtype) @ values[:, :, : position + 1]
            out = self._norm(out.reshape(rows, heads * dim), p + "self_attn.attn_sub_norm.weight")
            x = x + F.linear(out, w[p + "self_attn.o_proj.weight"])
            h = self._norm(x, p + "post_attention_layernorm.weight")
            h = F.silu(F.linear(h, w[p + "mlp.gate_proj.weight"])) * F.linear(h, w[p + "mlp.up_proj.weight"])
            x = x + F.linear(self._norm(h, p + "mlp.ffn_sub_norm.weight"), w[p + "mlp.down_proj.weight"])
        return F.linear(self._norm(x, "model.norm.weight"), w["model.embed_tokens.weight"]).float()

    @torch.inference_mode()
    def sample(self, openings: list[str], temperature: float, generator: torch.Generator) -> list[str]:
        """Continues every opening; returns the stories that came to an end."""
        c, rows = self.config, len(openings)
        prompts = [[BOS, *self.tokenizer.encode(text, add_special_tokens=False).ids] for text in openings]
        longest = max(map(len, prompts))
        length = longest + MAX_NEW
        shape = (rows, c["num_key_value_heads"], length, c["head_dim"])
        cache = [[torch.zeros(shape, dtype=self.dtype) for _ in "kv"] for _ in range(c["num_hidden_layers"])]
        texts = torch.zeros(rows, length, dtype=torch.long)
        for row, ids in enumerate(prompts):
            texts[row, : len(ids)] = torch.tensor(ids)
        prompt_lens = torch.tensor([len(ids) for ids in prompts])
        done: list[list[int]] = []
        live = torch.ones(rows, dtype=torch.bool)
        for position in range(length - 1):
            logits = self.step(texts[:, position], position, cache)
            logits[:, 0] = -math.inf  # <unk>
            nxt = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            nxt = torch.where(prompt_lens > position + 1, texts[:, position + 1], nxt)  # openings are forced, ragged
            texts[:, position + 1] = nxt
            ended = live & (nxt <= 2)
            done += [row[1 : position + 1].tolist() for row in texts[ended]]
            live &= ~ended
            if live.sum() < 0.15 * rows:  # the longest stories cost most and are mostly rambling
                break
            if position % 16 == 0 and live.sum() < 0.8 * len(live):
                texts, prompt_lens = texts[live], prompt_lens[live]
                cache = [[t[live] for t in layer] for layer in cache]
                live = torch.ones(len(texts), dtype=torch.bool)
        return [self.tokenizer.decode(ids).strip() for ids in done]


def opening(rng: random.Random) -> str:
    """A beginning; openings widen the choice of heroes and things far beyond Lily and her red ball."""
    name, hero = rng.choice(NAMES), rng.choice(HEROES)
    forms = [
        "",
        f"Once upon a time, there was a {rng.choice(ADJECTIVES)} {hero} named {name}.",
        f"Once upon a time, there was a {rng.choice(ADJECTIVES)} {hero}.",
        f"One day, {name} and the {hero}",
        f"{name} had a {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}.",
        f"One day, a {hero} found a {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}.",
        f"Once upon a time, in a {rng.choice(['small house', 'big forest', 'little town', 'deep sea', 'green field'])}",
        f"{name} was a {rng.choice(ADJECTIVES)} {hero} who liked to",
    ]
    return rng.choice(forms)


def keep(story: str) -> bool:
    """Whole, of a useful length, and not stuck in a loop."""
    if not 250 <= len(story) <= 1400 or story[-1] not in '.!?"' or "<" in story:
        return False
    sentences = [s.strip() for s in story.replace("!", ".").replace("?", ".").split(".") if len(s) > 12]
    return len(set(sentences)) >= 0.9 * len(sentences)


def sample_shards(
    model_dir: Path, out_dir: Path, *, shards: int, rows: int, rounds: int, tick: Callable[[], None]
) -> list[Path]:
    """Writes shard files `00000.txt`..; each holds what is kept of `rounds` batches of `rows` samples."""
    out_dir.mkdir(parents=True, exist_ok=True)
    model = None
    paths = [out_dir / f"{i:05d}.txt" for i in range(shards)]
    for i, path in enumerate(paths):
        if not path.exists():
            temperature = COOL if i < COOL_SHARDS else WARM
            model = model or StoryModel(model_dir)
            rng, generator = random.Random(i), torch.Generator().manual_seed(i)
            batches = [model.sample([opening(rng) for _ in range(rows)], temperature, generator) for _ in range(rounds)]
            stories = [story for batch in batches for story in batch if keep(story)]
            rng.shuffle(stories)
            partial = path.with_suffix(".part")
            partial.write_text(SEPARATOR.join(stories))
            partial.rename(path)
        tick()
    return paths


def read_shard(path: Path) -> list[str]:
    return path.read_text().split(SEPARATOR)
