"""After a step the policies act: slots that they drop are compacted away, and the tail pages are free for others."""

from __future__ import annotations

from ..kv.manager import KVManager
from ..kv.policies.base import Keep, PolicyInputs
from ..kv.storage import PageStorage
from ..schedule.scheduler import Scheduler
from .runner import StepResult
from .sequence import Sequence

Lens = list[list[int]]


def apply_policies(result: StepResult, manager: KVManager, storage: PageStorage, scheduler: Scheduler) -> int:
    """Let each sequence's policy choose what stays; returns the number of slots dropped.

    Called after the step's tokens were committed. A policy acts from the end of the prompt on, after every token, so
    that a recomputed sequence passes through the same states (see ``Sequence.chunk_end``). Where shared pages would
    have to be copied and no page is free, the sequence is preempted instead and leaves the step.
    """
    dropped = 0
    for index, piece in enumerate(result.pieces):
        sequence = piece.sequence
        if sequence.group.request.policy.exact or sequence.num_computed < sequence.prompt_len:
            continue
        keep, lens = _choose(index, sequence, result, manager)
        if not keep:
            continue
        moves = manager.keep_many(sequence.seq_id, keep)
        if moves is None:
            scheduler.preempt(sequence)
            result.drop(sequence)
            continue
        storage.run_copies(manager.take_copies())
        storage.run_moves(moves)
        dropped += sum(lens[layer][head] - len(slots) for (layer, head), slots in keep.items())
    return dropped


def _choose(index: int, sequence: Sequence, result: StepResult, manager: KVManager) -> tuple[Keep | None, Lens]:
    """What the policy keeps of sequence number ``index`` of the step, and the lengths [layer][head] before."""
    request, fmt, table = sequence.group.request, manager.fmt, manager.table(sequence.seq_id)
    lens = [[table.length(layer, head) for head in range(fmt.num_kv_heads)] for layer in range(fmt.num_layers)]
    inputs = PolicyInputs(
        num_layers=fmt.num_layers,
        num_kv_heads=fmt.num_kv_heads,
        lens=lens,
        num_seen=sequence.num_computed,
        prompt_len=sequence.prompt_len,
        seed=request.seed,
        probs=lambda layer: result.view.prob_sums[layer][index].cpu().numpy(),
    )
    return request.policy.select(inputs, sequence.policy_state), lens
