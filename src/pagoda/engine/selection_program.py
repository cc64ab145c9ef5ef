"""The choice of pages left to the kernels, all layers at once: made anew, or from that of the step before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..kv.choices import Choice
from ..kv.policies._pages import SCORED, PageSelection, kept
from .selection_held import HeldPages
from .selection_notes import Standing, full_pages

POSITIONS = 16
"""Whose turns are found together."""
OF_LAYERS = ("marks", "room", "given", "turn", "turns", "query", "noted", "weights", "metric", "freq")


class ByProgram(HeldPages):
    """Says what `kv.choices.Chooser.choice` does."""

    @property
    def has_rule(self) -> bool:
        """Whether ``choice`` may be asked: the policy has a rule and does not score in a way of its own."""
        return self._rule is not None and type(self._policy).score is PageSelection.score

    def choice(self) -> Choice:
        """The choice of all layers, left to the kernels: as ``choose`` would make it layer by layer. It stands until a
        page is full.
        """
        notes, full = self._notes, full_pages(self._table)
        standing = notes.stands(full)
        if standing is None:
            before = notes.standing
            standing = notes.standing = (before and self._stand_longer(before, full)) or self._stand(full)
        notes.count(standing)
        if not standing.renew(self._table.num_tokens):
            self._turn_on(standing)
            standing.renew(self._table.num_tokens)
        return standing.choice

    def _stand_longer(self, before: Standing, stood_for: int | bytes) -> Standing | None:
        """``_stand`` where every head has filled one page since, which the kernels note: little else is asked. None
        where there is more to do (no room, sketches that only the policy makes, heads that differ).

        With 32 sequences two fill a page in a step, and finding everything anew took an eighth of that.
        """
        policy, then = self._policy, before.choice
        if isinstance(stood_for, int) and isinstance(before.full, int) and policy.counts_alike and self._lossy is None:
            return self._one_page_more(before, stood_for) if stood_for == before.full + 1 else None
        full = self._full
        most = int(full.flat[0])
        if not (full == most).all() or not (then.full == most - 1).all():
            return None
        if most > before.room or policy.num_pages(most) == most or policy.num_pages(most - 1) == most - 1:
            return None
        if not policy.is_marked:
            return None
        keep = self._keep
        choice = replace(
            then,
            full=full.astype(np.int32),
            keep=keep.astype(np.int32),
            outliers=policy.num_outliers(most) * (~self._whole).astype(np.int32),
        )
        held, read = int(full.sum()) + full.size, int(keep.sum()) + full.size
        return replace(before, full=stood_for, choice=choice, held=held, read=read, num_bytes=-1)

    def _one_page_more(self, standing: Standing, most: int) -> Standing | None:
        """The same where all heads hold and read as much: a few numbers, in place. All of it anew took 30 us."""
        policy, choice = self._policy, standing.choice
        keep = policy.num_pages(most)
        if most > standing.room or keep == most or policy.num_pages(most - 1) == most - 1 or not policy.is_marked:
            return None
        choice.full[:], choice.keep[:], choice.outliers[:] = most, keep, policy.num_outliers(most)
        choice.grown[0] += 1
        standing.full, standing.held, standing.read = most, (most + 1) * choice.full.size, (keep + 1) * choice.full.size
        return standing

    def _stand(self, stood_for: int | bytes) -> Standing:
        policy, notes, rule = self._policy, self._notes, self._rule
        assert rule is not None
        (num_layers, num_heads), full = self._full.shape, self._full
        wanted = ~self._whole
        if rule.marks != "keys":
            self._sketch_all(wanted)
        marks = notes.sketches
        found = {name: np.zeros(num_layers, np.int64) for name in OF_LAYERS}
        num_given, outliers = np.zeros(num_layers, np.int32), np.zeros(num_layers, np.int32)
        fresh, scores = np.repeat(wanted[:, None], num_heads, 1), np.zeros(full.shape, np.int64)
        looks, alive = policy.looks(self._learned), []
        if policy.moves and wanted.any():
            turns = self._turns(int(full.max()))
            found["turns"] = (turns.data_ptr() + 4 * turns[0].numel() * np.arange(num_layers)) * wanted
        for layer in np.flatnonzero(wanted).tolist():
            memory, held = notes.memory[layer], marks[layer]
            if held is not None:
                found["marks"][layer], found["room"][layer] = held.data_ptr(), held.shape[1]
            aids = self._aids(layer)
            alive.append(aids)
            if aids.given is not None:
                found["given"][layer], num_given[layer] = aids.given.data_ptr(), aids.given.shape[1]
            if held is not None and policy.is_marked:
                found["noted"][layer] = notes.sketched[layer].ctypes.data
                for name in ("weights", "metric", "freq"):
                    found[name][layer] = 0 if (aid := getattr(aids, name)) is None else aid.data_ptr()
            outliers[layer] = policy.num_outliers(int(full[layer].max()))
            self._remember(memory, layer, looks is not None, scores, found["query"])
        if looks is not None:
            fresh &= looks.numpy()
            for layer in range(1, num_layers):
                scores[layer] = np.where(looks[layer].numpy(), scores[layer], scores[layer - 1])
        sample = next((held for held in marks if held is not None), None)
        numbers = [0] * 8
        if wanted.any():
            numbers = rule.numbers(sample, self._table.fmt.page_size, policy.keeps_first)
        choice = Choice(
            rules=np.array(numbers, np.int32),
            alike=policy.likeness,
            persist=policy.persists,
            num_given=num_given,
            outliers=outliers,
            full=full.astype(np.int32),
            keep=self._keep.astype(np.int32),
            scores=scores,
            fresh=fresh.astype(np.uint8),
            **found,
            changes=bool(wanted.any()) and (rule.query == "turn" or policy.reuse > 1),
        )
        held, read = int(full.sum()) + full.size, int(self._keep.sum()) + full.size
        standing = Standing(stood_for, choice, held, read, fresh, self._room(), alive)
        if choice.changes:
            standing.turns, standing.steps = rule.query == "turn", policy.reuse
        if policy.reuse > 1:
            layers = np.flatnonzero(fresh.any(1)).tolist()
            standing.waiting = {layer: notes.memory[layer] for layer in layers if SCORED not in notes.memory[layer]}
        return standing

    def _room(self) -> int:
        """Pages for which there is room in all that a choice points to."""
        rooms = [held.shape[1] for held in self._notes.sketches if held is not None]
        for memory in self._notes.memory:
            rooms += [memory[name].shape[-1] for name in ("votes", "scores") if name in memory]
        if "turns" in (first := self._notes.memory[0]):
            rooms.append(first["turns"].shape[1] - 1)
        return min(rooms, default=0)

    def _turn_on(self, standing: Standing) -> None:
        """Turns of this position and the next ones: found together, as one by one each took 20 us."""
        position = self._table.num_tokens
        positions = torch.arange(position, position + POSITIONS, dtype=torch.float32).view(-1, 1, 1)
        turn = self._policy.turn(positions, self._learned)
        assert turn is not None
        standing.turn_from(position, turn)

    def _turns(self, most: int) -> Tensor:
        """The policy's ``turns`` of all layers, by up to ``most`` pages."""
        memory = self._notes.memory[0]
        if "turns" not in memory or memory["turns"].shape[1] <= most:
            memory["turns"] = self._policy.turns(most + most // 4 + 4, self._table.fmt.page_size, self._learned)
        return memory["turns"]

    def _remember(
        self, memory: dict[str, Tensor], layer: int, hands_on: bool, scores: np.ndarray, query: np.ndarray
    ) -> None:
        """Where a layer's scores are kept goes to ``scores`` [L, H], where its query is to ``query`` [L]."""
        policy, (_, num_heads), most = self._policy, self._full.shape, int(self._full[layer].max())
        if policy.persists >= 0:
            scores[layer] = kept(memory, "votes", (), most).data_ptr()
        elif policy.reuse > 1 or policy.likeness > 0 or hands_on:
            held = kept(memory, "scores", (num_heads,), most)
            scores[layer] = held.data_ptr() + 4 * held.shape[1] * np.arange(num_heads)
            if policy.likeness > 0:
                if "query" not in memory:
                    memory["query"] = torch.zeros(self._num_q_heads * self._table.fmt.k_dim)
                query[layer] = memory["query"].data_ptr()

    def _sketch_all(self, wanted: np.ndarray) -> None:
        """Notes what is not noted yet in these layers, or makes room for the kernels to do it."""
        full, notes = self._full, self._notes
        for layer in np.flatnonzero(wanted & (full > notes.sketched).any(1)).tolist():
            most = int(full[layer].max())
            if self._marks_later(layer):
                notes.room(layer, most, self._by_channel)
            else:
                self._sketches(layer, full[layer], self._ids[layer, :, : most + 1])
