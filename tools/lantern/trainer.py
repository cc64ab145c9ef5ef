"""The training loop: phases of growing length, Muon + AdamW, checkpoints that resume to the same data position."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed
import torch.nn.functional as F

from lantern.model import Llama
from lantern.probe import probe
from lantern.tasks import TaskMix


@dataclass(frozen=True)
class Phase:
    """`tokens` of sequences of `length`; `shares` of TaskMix's builders; filler share of recall sequences."""

    length: int
    tokens: int
    shares: dict[str, float]
    filler: tuple[float, float]
    batch_tokens: int = 8192

    def scaled(self, factor: float) -> Phase:
        return replace(self, tokens=int(self.tokens * factor))


@dataclass(frozen=True)
class Settings:
    seed: int = 1
    muon_lr: float = 0.015
    adam_lr: float = 0.003
    weight_decay: float = 0.01
    warmup_steps: int = 60
    decay_tokens: int = 6_000_000  # the last tokens, linearly down to a twentieth
    probe_every_s: float = 180.0
    save_every_s: float = 120.0
    compile: bool = False  # 1.1 to 1.2 times as fast once compiled, minutes to compile at each new length


class Trainer:
    def __init__(
        self,
        model: Llama,
        mix: TaskMix,
        phases: list[Phase],
        settings: Settings,
        work: Path,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        self.model, self.mix, self.phases, self.settings, self.work = model, mix, phases, settings, work
        self.rank, self.workers = rank, workers
        self.device = next(model.parameters()).device
        matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
        ids = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in ids]
        s = settings
        self.optimizers = [
            torch.optim.Muon(matrices, lr=s.muon_lr, momentum=0.95, weight_decay=s.weight_decay),
            torch.optim.AdamW(rest, lr=s.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peak_lrs = [s.muon_lr, s.adam_lr]
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.total_tokens = sum(p.tokens for p in phases)
        self.forward = torch.compile(self._loss, dynamic=False) if s.compile else self._loss

    # data

    def phase(self) -> Phase:
        end = 0
        for phase in self.phases:
            end += phase.tokens
            if self.tokens < end:
                return phase
        return self.phases[-1]

    def batch(self, phase: Phase) -> tuple[torch.Tensor, torch.Tensor]:
        """This worker's share of the step's sequences."""
        rows = phase.batch_tokens // phase.length
        seeds = range(self.step * 1000 + self.rank, self.step * 1000 + rows, self.workers)
        seqs = [
            self.mix.build(self.settings.seed * 10**12 + s, phase.length, phase.shares, phase.filler) for s in seeds
        ]
        ids = torch.tensor([s.ids for s in seqs])
        weights = torch.tensor([s.weights for s in seqs])
        return ids.to(self.device), weights.to(self.device)

    # one step

    def _loss(self, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted mean, and the mean over tokens that count as answers."""
        logits = self.model(ids[:, :-1])
        each = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        w = weights[:, 1:].flatten()
        answers = (w > 1.5).float()
        return (each * w).sum() / w.sum(), (each * answers).sum().detach() / answers.sum().clamp(min=1)

    def _set_lr(self) -> float:
        s = self.settings
        factor = min(1.0, (self.step + 1) / s.warmup_steps)
        left = self.total_tokens - self.tokens
        if left < s.decay_tokens:
            factor *= max(0.02, left / s.decay_tokens)
        for optimizer, peak in zip(self.optimizers, self.peak_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        return factor

    def train_step(self) -> dict[str, float]:
        phase = self.phase()
        ids, weights = self.batch(phase)
        factor = self._set_lr()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss, answer_loss = self.forward(ids, weights)
        loss.backward()
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += phase.batch_tokens
        return {
            "loss": loss.item(),
            "answer_loss": answer_loss.item(),
            "norm": norm.item(),
            "lr": factor,
            "length": phase.length,
        }

    def _average_gradients(self) -> None:
        if self.workers == 1:
            return
        grads = [p.grad for p in self.model.parameters()]
        flat = torch.cat([g.flatten() for g in grads])
        torch.distributed.all_reduce(flat)
        flat /= self.workers
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    # the loop

    def run(self, on_step: Callable[[int, dict[str, float]], None], stop: Callable[[], bool] = lambda: False) -> None:
        last = probed = saved = time.monotonic()
        sums: dict[str, float] = {}
        count = 0
        while self.tokens < self.total_tokens and not stop():
            row = self.train_step()
            now = time.monotonic()
            self.seconds += now - last
            last = now
            for key, value in row.items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            if self.rank > 0:
                continue
            on_step(self.tokens, row)
            if self.step % 20 == 0:
                self.log({k: round(v / count, 4) for k, v in sums.items()})
                sums, count = {}, 0
            if now - probed > self.settings.probe_every_s:
                self.log({"probe": probe(self.model, self.mix, self.phase().length)})
                probed = time.monotonic()
            if now - saved > self.settings.save_every_s:
                self.save()
                saved = time.monotonic()
        if self.rank == 0:
            self.save()

    def log(self, row: dict[str, object]) -> None:
        with (self.work / "log.jsonl").open("a") as file:
            head = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds)}
            file.write(json.dumps({**head, **row}) + "\n")

    # checkpoints

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        partial = self.work / "checkpoint.part"
        torch.save(state, partial)
        partial.rename(self.work / "checkpoint.pt")

    def resume(self) -> bool:
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        return True
