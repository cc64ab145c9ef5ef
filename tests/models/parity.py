"""Shared by the family tests: a transformers twin with random weights, and runs of ours over ragged batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pagoda.models.layers.step import KVView
from pagoda.models.model import Model

PROMPT_LENS = (40, 1, 21, 9)
CHUNKS = ((7, 1, 5, 9), (16, 1, 3, 1), (1, 1, 13, 1))  # tokens per sequence of successive prefill steps, in turn
NEW_TOKENS = 64

ViewOf = Callable[[list[int], list[int]], KVView]
"""(sequence numbers, tokens of each in this step) -> the view for one forward pass."""


def prompts(vocab_size: int, lens: Sequence[int] = PROMPT_LENS, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in lens]


def twin(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """transformers' model of a config dict, in float32 on the CPU, every parameter and buffer of its state random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    hf_config = AutoConfig.for_model(config["model_type"], **fields)
    torch.manual_seed(seed)
    # eager has every feature written out, but adds Falcon's ALiBi twice: in the mask and again in the layer
    attention = "sdpa" if config["model_type"] == "falcon" else "eager"
    model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_values(name, tensor, generator))
    return model


def _values(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if "norm" in name.lower() or ".ln_" in name:
        return noise * 0.2 + (1.0 if name.endswith("weight") else 0.0)
    if tensor.dim() < 2:
        return noise * 0.3
    return noise * (1.0 if "embed" in name or "wte" in name or "wpe" in name else 1.4 / tensor.shape[-1] ** 0.5)


def load(config: dict[str, Any], state: dict[str, Tensor], **options: Any) -> Model:
    """Our model of a config, filled from a state dict."""
    model = Model.from_config(config, **options)
    for name, tensor in state.items():
        model.load_tensor(name, tensor)
    return model.finish_loading()


class Run:
    """Sequences advanced together; remembers every token and the logits behind it."""

    def __init__(self, model: Model, view_of: ViewOf, tokens: Sequence[Sequence[int]]) -> None:
        self.model, self.view_of = model, view_of
        self.tokens = [list(t) for t in tokens]
        self.done = [0] * len(tokens)
        self.logits: list[list[Tensor]] = [[] for _ in tokens]

    def step(self, counts: Sequence[int]) -> None:
        """Compute the next ``counts[s]`` tokens of each sequence in one forward pass."""
        seqs = [s for s, n in enumerate(counts) if n]
        parts = [(s, self.done[s], self.done[s] + counts[s]) for s in seqs]
        ids = torch.tensor([t for s, a, b in parts for t in self.tokens[s][a:b]])
        positions = torch.cat([torch.arange(a, b) for _, a, b in parts])
        view = self.view_of(seqs, [counts[s] for s in seqs])
        device = self.model.device
        with torch.inference_mode():
            rows = self.model.logits(self.model.forward(ids.to(device), positions.to(device), view)).cpu()
        for s, part in zip(seqs, rows.split([counts[s] for s in seqs]), strict=True):
            self.logits[s].append(part)
            self.done[s] += counts[s]

    def prefill(self, chunks: Sequence[Sequence[int]] | None) -> None:
        """All prompts, whole or by the pattern of chunk sizes."""
        turn = 0
        while any(left := [len(t) - d for t, d in zip(self.tokens, self.done, strict=True)]):
            sizes = chunks[turn % len(chunks)] if chunks else left
            self.step([min(n, size) for n, size in zip(left, sizes, strict=True)])
            turn += 1

    def decode(self, num_tokens: int) -> None:
        """Greedy continuation; the last token is not computed."""
        for n in range(num_tokens):
            for s, rows in enumerate(self.logits):
                self.tokens[s].append(int(rows[-1][-1].argmax()))
            if n + 1 < num_tokens:
                self.step([1] * len(self.tokens))

    def all_logits(self, s: int) -> Tensor:
        return torch.cat(self.logits[s])


def assert_same(ours: Tensor, tokens: Sequence[int], prompt_len: int, reference: torch.nn.Module, where: str) -> None:
    """Logits of every position, and every greedy choice, against one pass of transformers over the same tokens."""
    with torch.inference_mode():
        theirs = reference(torch.tensor([tokens[: ours.shape[0]]]), use_cache=False).logits[0].float()
    scale = float(theirs.abs().max())
    worst = float((ours - theirs).abs().max())
    assert worst < 1e-4 * max(scale, 1.0), f"{where}: logits differ by {worst:.2e} (scale {scale:.2f})"
    top = theirs[prompt_len - 1 :].topk(2, dim=-1)
    clear = (top.values[:, 0] - top.values[:, 1]) > 1e-5 * scale
    chosen = torch.tensor(tokens[prompt_len:])
    assert bool(((chosen == top.indices[:, 0]) | ~clear).all()), f"{where}: greedy tokens differ"
