"""What an engine counts, and what it says of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepEnded:
    """Published after each step: what ran, for how long (seconds), and the state of the queues.

    ``token_gaps``: for each token that was sampled and not the first of its answer, seconds since the one before.
    """

    num_tokens: int
    num_sequences: int
    num_preempted: int
    num_waiting: int
    num_running: int
    seconds: float
    token_gaps: tuple[float, ...] = ()


@dataclass(slots=True)
class Counters:
    """Totals since the engine was built."""

    steps: int = 0
    step_seconds: float = 0.0
    tokens_computed: int = 0
    tokens_sampled: int = 0
    prompt_tokens: int = 0
    requests_accepted: int = 0
    requests_finished: int = 0
    requests_failed: int = 0
    slots_dropped: int = 0
    policy_acts: int = 0  # of single sequences
    policy_seconds: float = 0.0  # of showing, deciding and moving
    pages_read: int = 0  # by selections, each head and layer counted
    pages_held: int = 0  # of those that their sequences held
