"""What a step changes: tokens are committed, sampled, forked, and sequences end."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core.clock import Clock
from ..core.types import FinishReason
from ..models.tokenizer import Tokenizer
from ..sampling.finish import Finish
from ..sampling.logprobs import TokenLogprob, prompt_logprobs
from ..sampling.masks import MaskAhead
from ..sampling.sampler import Sampled, Sampler
from ..sampling.scratch import logit_rows
from ..schedule.item import Plan, Scheduled
from ..schedule.scheduler import Scheduler
from .pooling import pool
from .runner import Piece, Runner, StepResult
from .sequence import RequestState, Sequence
from .text import TextStream


class Advance:
    """Applies step results to sequences. Everything that ends goes through ``end``."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: Tokenizer,
        clock: Clock,
        new_sequence: Callable[[RequestState, int], Sequence],
    ) -> None:
        self._scheduler, self._runner = scheduler, runner
        self._tokenizer, self._clock, self._new_sequence = tokenizer, clock, new_sequence
        self._sampler, self._masks = Sampler(), MaskAhead()
        self._gaps: list[float] = []
        self.num_tokens = 0
        """Tokens that answers were given so far; those of one prompt count each."""

    @property
    def num_masks(self) -> int:
        """Masks computed ahead so far."""
        return self._masks.num_masks

    def take_gaps(self) -> tuple[float, ...]:
        """Seconds between tokens of one answer, of the tokens accepted since the last call."""
        gaps, self._gaps = tuple(self._gaps), []
        return gaps

    def prepare(self, plan: Plan) -> None:
        """Before the step runs: the masks of structured sequences are computed beside it, by other threads."""
        self._masks.start([s.item.sample_state for s in plan.scheduled if _is_sampled(s)])  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the threads that compute masks."""
        self._masks.close()

    def lose(self, result: StepResult) -> None:
        """Sequences whose KV did not come from its tier, or could not be put there: their requests end, and what the
        tier has of other texts is not trusted any more. Those whose policy broke end, too, before anything that they
        computed is offered to others.
        """
        for index, why in result.view.failures.items():
            group = result.batch[index].sequence.group
            self.fail(group, why)
            group.store.manager.clear_prefix()
        broken = [] if result.plain else [piece.sequence for piece in result.batch if piece.sequence.broken]
        for sequence in broken:
            self.fail(sequence.group, sequence.broken)
        if broken or result.view.failures:
            result.pieces = [piece for piece in result.pieces if not piece.sequence.finished]
            for sequence in [sequence for sequence in result.sampled if sequence.finished]:
                result.drop(sequence)

    def commit(self, pieces: list[Piece]) -> None:
        """The pieces' KV is in pages: count it, and let full pages be found by later requests."""
        for piece in pieces:
            sequence, end = piece.sequence, piece.start + piece.num_tokens
            manager = sequence.store.manager
            if sequence.policy.selection is not None and piece.start >= sequence.prompt_len:
                manager.stop_offering(sequence.seq_id)  # computed from a part of the pages: not for others
            manager.commit(sequence.seq_id, sequence.tokens[piece.start : end])
            sequence.num_computed = end
            group = sequence.group
            group.peak_kv_bytes = max(group.peak_kv_bytes, group.held_bytes)

    def sample(self, result: StepResult) -> None:
        """Choose the next token of every sequence that is complete; answers of one prompt fork here."""
        if result.likeliest and min(result.likeliest) >= 0:  # else the sampler finds them, or says what is wrong
            for sequence, token_id in zip(result.sampled, result.likeliest, strict=True):
                self._accept(sequence, token_id)
            return
        for piece in result.pieces:
            if piece.sequence.group.request.params.prompt_logprobs is not None:
                self._report_prompt(piece, result)
            if piece.sequence.group.request.pooling is not None:
                self._embed(piece, result)
        beams = [row for row, sequence in enumerate(result.sampled) if sequence.group.beam is not None]
        for row in beams:
            sequence = result.sampled[row]
            assert sequence.group.beam is not None
            sequence.group.beam.offer(sequence, result.logits[row])
            self.num_tokens += 1
        rows, sequences = [], []
        for row, sequence in enumerate(result.sampled):
            if sequence.group.beam is None:
                answers = [sequence, *self._fork_answers(sequence)]
                rows.extend([row] * len(answers))
                sequences.extend(answers)
        if not sequences:
            return
        if rows == list(range(result.logits.shape[0])):
            self._choose(sequences, result.logits)
            return
        at_once = logit_rows(result.logits.shape[1])
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            self._choose(sequences[part], result.logits[rows[part]])

    def _choose(self, sequences: list[Sequence], logits: Tensor) -> None:
        taught = {
            row: Sampled(sequence.group.request.teacher(sequence.num_output, logits[row]))
            for row, sequence in enumerate(sequences)
            if sequence.group.request.teacher is not None
        }
        for row, sequence in enumerate(sequences):
            if sequence.group.request.observer is not None:
                sequence.group.request.observer(sequence.num_output, logits[row])
        sampled = self._sampler.sample(logits, [sequence.sample_state for sequence in sequences])
        for row, (sequence, token) in enumerate(zip(sequences, sampled, strict=True)):
            self._accept_sampled(sequence, taught.get(row, token))

    def wake(self, sequence: Sequence) -> None:
        """A complete sequence was given another token."""
        self._scheduler.wake(sequence)

    def end(self, sequence: Sequence, reason: FinishReason, why: str | int | None = None) -> None:
        """The sequence gets no more tokens: its pages go back, its held-back text comes out."""
        if sequence.finished:
            return
        stop = sequence.text.finish(sequence.num_output) if sequence.text.decides else None
        if stop is not None and reason is FinishReason.LENGTH:
            reason, why = FinishReason.STOP, stop
        sequence.finish_reason, sequence.stop_reason = reason, why
        self._scheduler.remove(sequence, completed=reason in (FinishReason.STOP, FinishReason.LENGTH))

    def fail(self, group: RequestState, message: str, *, no_room: bool = False) -> None:
        """The whole request ends in an error that says why."""
        group.error, group.no_room = message, no_room
        for sequence in group.live:
            self.end(sequence, FinishReason.ERROR, message)

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _accept_sampled(self, sequence: Sequence, sampled: Sampled) -> None:
        if sequence.finished:  # another answer of its request failed in this very step
            return
        if sampled.error is not None:
            self.fail(sequence.group, sampled.error)
            return
        if sampled.logprob is not None:
            sequence.cumulative_logprob += sampled.logprob
            if sequence.group.request.params.logprobs is not None:
                sequence.logprobs.append(_report(sampled))
        self._accept(sequence, sampled.token_id)

    def _accept(self, sequence: Sequence, token_id: int) -> None:
        timing, now = sequence.group.timing, self._clock.now()
        if timing.first_token is None:
            timing.first_token = now
        if sequence.token_at is not None:
            self._gaps.append(now - sequence.token_at)
        sequence.token_at = now
        self.num_tokens += 1
        sequence.tokens.append(token_id)
        sequence.sample_state.accept(token_id)
        self._end_if_done(sequence, token_id)

    def _end_if_done(self, sequence: Sequence, token_id: int) -> None:
        finish = sequence.group.rule.check(token_id, sequence.num_output)
        if sequence.sample_state.is_complete and (finish is None or finish.reason is FinishReason.LENGTH):
            finish = Finish.at_structure_end()
        ends_here = finish is not None and token_id in sequence.sample_state.end_ids
        if not ends_here or sequence.group.request.params.include_stop_in_output:
            sequence.num_shown = sequence.num_output
            stop = sequence.text.push(token_id, sequence.num_output) if sequence.text.decides else None
            if stop is not None:
                finish = Finish.at_stop_string(stop)
        if finish is not None:
            self.end(sequence, finish.reason, finish.stop)

    # -- several answers of one prompt -------------------------------------------------------------------------------

    def _fork_answers(self, lead: Sequence) -> list[Sequence]:
        """When the prompt is complete for the first time, the other answers share its pages from here on."""
        group = lead.group
        if len(group.sequences) >= group.num_answers or lead.index != 0:
            return []
        return [self.fork(lead, index) for index in range(1, group.num_answers)]

    def fork(self, parent: Sequence, index: int) -> Sequence:
        """A sequence that goes on from the parent's tokens, sharing its pages.

        Without a free seat (or when the parent itself lost its pages) it waits, and finds what the prefix cache has.
        """
        child = self._new_sequence(parent.group, index)
        child.tokens = list(parent.tokens)
        child.sample_state = parent.sample_state.fork(index)
        child.text = TextStream.of(self._tokenizer, parent.group.request.params)
        child.cumulative_logprob, child.num_computed = parent.cumulative_logprob, parent.num_computed
        child.policy_state = parent.policy_state.fork()
        if self._scheduler.is_running(parent) and self._scheduler.add_running(child):
            child.store.manager.fork(parent.seq_id, child.seq_id, parent.policy_state.open_from)
            child.store.shared.use(child.policy.reads)
        else:
            child.forget_kv()
            self._scheduler.add(child)
        return child

    def _embed(self, piece: Piece, result: StepResult) -> None:
        """A prompt that is read for its embedding ends with its last chunk."""
        group = piece.sequence.group
        group.embedding = pool(piece, result)
        if group.embedding is not None:
            group.timing.first_token = self._clock.now()
            self.end(piece.sequence, FinishReason.STOP)

    # -- prompt logprobs -----------------------------------------------------------------------------------------------

    def _report_prompt(self, piece: Piece, result: StepResult) -> None:
        """Log-probabilities of the prompt's tokens that this piece predicts (the first token has none)."""
        group = piece.sequence.group
        assert result.hidden is not None
        reports = group.prompt_logprobs = group.prompt_logprobs or [None]
        prompt, num_top = group.request.prompt_ids, group.request.params.prompt_logprobs
        assert num_top is not None
        first = max(piece.start, len(reports) - 1)  # after a preemption the early ones are known already
        last = min(piece.start + piece.num_tokens, len(prompt) - 1)
        at_once = logit_rows(result.logits.shape[1])
        for start in range(first, last, at_once):
            stop = min(start + at_once, last)
            rows = [piece.first_row + position - piece.start for position in range(start, stop)]
            reports.extend(
                prompt_logprobs(self._runner.logits(result.hidden, rows), prompt[start + 1 : stop + 1], num_top)
            )


def _is_sampled(scheduled: Scheduled) -> bool:
    """Whether this piece ends with the sequence's newest token."""
    return scheduled.start + scheduled.num_tokens == scheduled.item.num_tokens


def _report(sampled: Sampled) -> TokenLogprob:
    assert sampled.logprob is not None
    assert sampled.rank is not None
    return TokenLogprob(sampled.token_id, sampled.logprob, sampled.rank, sampled.top)
