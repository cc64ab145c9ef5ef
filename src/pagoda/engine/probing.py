"""Mean hidden states of prompts, for a scheduling policy that predicts from them."""

from __future__ import annotations

from torch import Tensor

from ..schedule.scheduler import Scheduler
from .runner import StepResult


class Probing:
    """Sums rows of prompts chunk by chunk, in float32; a prompt that is complete is told to the policy."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sums: dict[int, tuple[Tensor, int]] = {}

    def see(self, result: StepResult) -> None:
        """After the forward pass. Does nothing where the policy does not want to know."""
        policy = self._scheduler.policy
        if not policy.wants_hidden:
            return
        assert result.hidden is not None
        for piece in result.pieces:
            sequence, count = piece.sequence, min(piece.num_tokens, piece.sequence.prompt_len - piece.start)
            if count <= 0:
                continue
            part = result.hidden[piece.first_row : piece.first_row + count].float().sum(0)
            known = self._sums.pop(sequence.seq_id, None)
            if known is not None:
                part, count = part + known[0], count + known[1]
            if piece.start + piece.num_tokens >= sequence.prompt_len:
                policy.probed(sequence, (part / count).tolist())
            else:
                self._sums[sequence.seq_id] = (part, count)
        if len(self._sums) > len(self._scheduler.running):  # of those that left, or were preempted, in mid-prompt
            self._sums = {s: v for s, v in self._sums.items() if s in self._scheduler.running}
