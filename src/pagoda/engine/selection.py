"""Page selection in decode steps: which pages each head reads, as a table that attention takes like any other.

A head's slots lie in pages; reading only some of them is a table over those pages, since order and position of slots do
not matter to a decode query: the chosen full pages come first, the page under way last::

    held     │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6.. │        6 full pages and one under way
    read     │ 1 │ 4 │ 5 │ 6.. │                     kv_len = 3 * page_size + slots of the last
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops.page_scores import KeyPages
from ..kv.choices import Choice
from ..kv.policies._pages import Look, PageSelection, kept
from ..kv.storage import PageStorage
from ..kv.table import PageTable
from .selection_notes import Notes, Standing

if TYPE_CHECKING:
    from ..kernels.ops.page_scores import PageRule

REMOTE_PAGES = 1024
"""Pages of a head whose keys are looked at together where each is noted for itself: a long prompt's need not all be in
memory at once."""

FEW_PAGES = 8
"""Of each head, whose keys are looked at in all layers at once."""


class PageChooser:
    """One sequence in one decode step. Where all heads hold as many slots, as a rule, the work of a layer is one
    look at the sketches, one choice and one gather; where an eviction left them unequal, ``_columns`` sorts it out.
    """

    def __init__(
        self,
        policy: PageSelection,
        notes: Notes,
        storage: PageStorage,
        table: PageTable,
        learned: Mapping[str, Tensor],
        num_q_heads: int,
    ) -> None:
        self._policy, self._notes, self._storage, self._table = policy, notes, storage, table
        self._learned, self._num_q_heads = learned, num_q_heads

    @property
    def _rule(self) -> PageRule | None:
        return self._policy.judged_by

    @cached_property
    def _lens(self) -> np.ndarray:
        """int64 [L, H]: slots, the newest token's among them."""
        table = self._table
        held = np.broadcast_to(table.lens[:, None], (table.num_rows, table.run))
        return held.reshape(table.fmt.num_layers, -1) + 1

    @cached_property
    def _full(self) -> np.ndarray:
        """int64 [L, H]; the page that holds the newest token is read whatever it holds."""
        full: np.ndarray = (self._lens - 1) // self._table.fmt.page_size
        return full

    @cached_property
    def _is_even(self) -> bool:
        return bool((self._lens == self._lens.flat[0]).all())

    @cached_property
    def _ids(self) -> Tensor:
        return _page_ids(self._table, 0, int(self._full.max()) + 1).to(self._storage.device)

    @cached_property
    def _keep(self) -> np.ndarray:
        return self._policy.counts(self._full, self._learned)

    @cached_property
    def _whole(self) -> np.ndarray:
        """bool [L]: layers in which nothing is scored, since everything is read."""
        return np.array([self._policy.num_pages(int(most)) == most for most in self._full.max(1)])

    def _count(self, layers: slice) -> None:
        notes, full = self._notes, self._full[layers]
        notes.pages_held += int(full.sum()) + full.size
        notes.pages_read += int(self._keep[layers].sum()) + full.size

    # -- all layers at once --------------------------------------------------------------------------------------------

    @property
    def has_rule(self) -> bool:
        """Whether ``choice`` may be asked: the policy has a rule and does not score in a way of its own."""
        return self._rule is not None and type(self._policy).score is PageSelection.score

    def choice(self) -> Choice:
        """The choice of all layers, left to the kernels: as ``choose`` would make it layer by layer. It stands until a
        page is full.
        """
        notes, table = self._notes, self._table
        size = table.fmt.page_size
        full = int(table.lens[0]) // size if table.num_rows == 1 else (table.lens // np.int32(size)).tobytes()
        standing = notes.standing
        if standing is None or standing.full != full:
            standing = notes.standing = (standing and self._stand_longer(standing, full)) or self._stand(full)
        notes.pages_held += standing.held
        notes.pages_read += standing.read
        if standing.choice.changes:
            self._renew(standing)
        return standing.choice

    def _stand_longer(self, before: Standing, full_pages: int | bytes) -> Standing | None:
        """``_stand`` where every head has filled one page since: what changes is noted, little else is asked. None
        where there is more to do (no room, sketches that are made layer by layer, heads that differ).

        With 32 sequences two fill a page in a step, and finding everything anew took an eighth of that.
        """
        policy, then, full = self._policy, before.choice, self._full
        most = int(full.flat[0])
        if not (full == most).all() or not (then.full == most - 1).all():
            return None
        if most > before.room or policy.num_pages(most) == most or policy.num_pages(most - 1) == most - 1:
            return None
        if self._rule is not None and self._rule.marks != "keys" and not self._sketch_newest(most - 1):
            return None
        keep = self._keep
        choice = replace(
            then,
            full=full.astype(np.int32),
            keep=keep.astype(np.int32),
            outliers=np.full_like(then.outliers, policy.num_outliers(most)),
        )
        held, read = int(full.sum()) + full.size, int(keep.sum()) + full.size
        return Standing(full_pages, choice, held, read, before.scored, before.room, before.turn)

    def _sketch_newest(self, page: int) -> bool:
        """Notes this page of all heads at once; False, and nothing, where that is not how it is done."""
        notes = self._notes
        if (notes.sketched != page).any():
            return False
        keys = self._keys(_page_ids(self._table, page, page + 1).flatten(0, 1).to(self._storage.device))
        made = self._policy.sketch_layers(keys.unflatten(0, notes.sketched.shape), notes.memory, page, self._learned)
        return made is not None and notes.write_layers(page, made)

    def _stand(self, full_pages: int | bytes) -> Standing:
        policy, notes, rule = self._policy, self._notes, self._rule
        assert rule is not None
        (num_layers, num_heads), full = self._full.shape, self._full
        wanted = ~self._whole
        if rule.marks != "keys":
            self._sketch_all(wanted)
        marks = notes.sketches
        found = {name: np.zeros(num_layers, np.int64) for name in ("marks", "room", "given", "turn", "turns", "query")}
        num_given, outliers = np.zeros(num_layers, np.int32), np.zeros(num_layers, np.int32)
        fresh, scores = np.repeat(wanted[:, None], num_heads, 1), np.zeros(full.shape, np.int64)
        looks = policy.looks(self._learned)
        if policy.moves and wanted.any():
            turns = self._turns(int(full.max()))
            found["turns"] = (turns.data_ptr() + 4 * turns[0].numel() * np.arange(num_layers)) * wanted
        for layer in np.flatnonzero(wanted).tolist():
            memory, held = notes.memory[layer], marks[layer]
            if held is not None:
                found["marks"][layer], found["room"][layer] = held.data_ptr(), held.shape[1]
            given = policy.given(memory, self._of(layer))
            if given is not None:
                found["given"][layer], num_given[layer] = given.data_ptr(), given.shape[1]
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
            changes=bool(wanted.any()) and (rule.query == "turn" or policy.steps_a_choice > 1),
        )
        held, read = int(full.sum()) + full.size, int(self._keep.sum()) + full.size
        return Standing(full_pages, choice, held, read, fresh, self._room())

    def _room(self) -> int:
        """Pages for which there is room in all that a choice points to."""
        rooms = [held.shape[1] for held in self._notes.sketches if held is not None]
        for memory in self._notes.memory:
            rooms += [memory[name].shape[-1] for name in ("votes", "scores") if name in memory]
        if "turns" in (first := self._notes.memory[0]):
            rooms.append(first["turns"].shape[1] - 1)
        return min(rooms, default=0)

    def _renew(self, standing: Standing) -> None:
        """What of a choice is another in every step: how far queries are turned, and whether scores are made."""
        policy, choice, notes = self._policy, standing.choice, self._notes
        turn = policy.turn(self._table.num_tokens, self._learned)
        if turn is not None:
            standing.turn = turn
            choice.turn[:] = turn.data_ptr() + 4 * turn.shape[-1] * np.arange(len(choice.turn))
        if policy.steps_a_choice > 1:
            for layer in np.flatnonzero(standing.scored.any(1)).tolist():
                choice.fresh[layer] = standing.scored[layer] & policy.comes_due(notes.memory[layer])

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
        elif policy.steps_a_choice > 1 or policy.likeness > 0 or hands_on:
            held = kept(memory, "scores", (num_heads,), most)
            scores[layer] = held.data_ptr() + 4 * held.shape[1] * np.arange(num_heads)
            if policy.likeness > 0:
                if "query" not in memory:
                    memory["query"] = torch.zeros(self._num_q_heads * self._table.fmt.k_dim)
                query[layer] = memory["query"].data_ptr()

    def _sketch_all(self, wanted: np.ndarray) -> None:
        full, known = self._full, self._notes.sketched
        behind = wanted & (full > known).any(1)
        start, most = int(known.min()), int(full.max())
        if behind.all() and self._is_even and start == known.max() and most - start <= FEW_PAGES:
            keys = self._keys(_page_ids(self._table, start, most).flatten(0, 1).to(self._storage.device))
            by_layer = keys.unflatten(0, full.shape)
            made = self._policy.sketch_layers(by_layer, self._notes.memory, start, self._learned)
            if made is not None:
                for layer, one in enumerate(made):
                    self._notes.write(layer, slice(None), start, one, self._by_channel)
                known[:] = full
                return
        for layer in np.flatnonzero(behind).tolist():
            most = int(full[layer].max())
            self._sketches(layer, full[layer], self._ids[layer, :, : most + 1])

    @property
    def _by_channel(self) -> bool:
        return self._rule is not None and self._rule.marks == "columns"

    # -- layer by layer ------------------------------------------------------------------------------------------------

    def choose(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """q [Hq, D] of the newest token, whose own key is written: page ids int32 [H, K], slots to attend int32 [H]."""
        page_size, full, counts = self._table.fmt.page_size, self._full[layer], self._keep[layer]
        self._notes.standing = None  # what is remembered of this step is not counted in it
        most, keep = int(full.max()), int(counts.max())
        ids = self._ids[layer, :, : most + 1]
        self._count(slice(layer, layer + 1))
        last = self._lens[layer] - full * page_size
        if self._whole[layer]:
            return ids.to(torch.int32), self._slots(full * page_size + last)
        if self._is_even and int(counts.min()) == keep < most:
            scores = self._scores(layer, q, scale, full, ids)
            scores[:, most - 1] = torch.inf
            best = ids.gather(1, _best(scores, keep).sort(1).values)
            return torch.cat([best, ids[:, most:]], 1).to(torch.int32), self._slots(keep * page_size + last)
        columns = self._columns(layer, q, scale, full, ids, torch.from_numpy(counts).to(ids.device), keep)
        return ids.gather(1, columns).to(torch.int32), self._slots(counts * page_size + last)

    @property
    def moves(self) -> bool:
        """Whether what is read is read from copies: ``copies``, in place of ``choose``."""
        return self._policy.moves

    def copies(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor, int]:
        """What this step reads, in the order of the text: k float32 [H, K, page_size, Dk] with positions side by side,
        v alike, and how many slots of it there are. All heads read as many.
        """
        chosen, lens = self.choose(layer, q, scale)
        ids = self._ids[layer]
        columns = (ids[:, None] == chosen[..., None]).long().argmax(-1).sort(1).values  # [H, K]
        size, num = self._table.fmt.page_size, columns.shape[1]
        ahead = columns[:, -1:] - columns - torch.arange(num - 1, -1, -1, device=ids.device)  # pages left out after it
        k, v = self._copied(ids.gather(1, columns))
        return self._policy.moved(k, ahead * size, self._of(layer)), v, int(lens[0])

    def _copied(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of these pages, float32 [H, K, page_size, D]."""
        k, v = self._storage.gather(ids)
        assert v is not None, "latent keys have no rotary positions of their own"
        k, v = (x.unflatten(1, (ids.shape[1], self._table.fmt.page_size)) for x in (k, v))
        return k, v

    # -- where the policy broke: all that is held, without asking it ---------------------------------------------------

    def choice_of_all(self) -> Choice:
        """In place of ``choice``."""
        full = self._full
        none, zeros = np.zeros(len(full), np.int64), np.zeros(len(full), np.int32)
        return Choice(
            rules=np.zeros(8, np.int32), alike=0.0, persist=-1.0, marks=none, room=none, given=none, num_given=zeros,
            turn=none, outliers=zeros, full=full.astype(np.int32), keep=full.astype(np.int32),
            scores=np.zeros(full.shape, np.int64), fresh=np.zeros(full.shape, np.uint8), turns=none, query=none,
        )  # fmt: skip

    def all_pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """In place of ``choose``."""
        return self._ids[layer, :, : int(self._full[layer].max()) + 1].to(torch.int32), self._slots(self._lens[layer])

    def copies_of_all(self, layer: int) -> tuple[Tensor, Tensor, int]:
        """In place of ``copies``."""
        ids, lens = self.all_pages(layer)
        return *self._copied(ids.long()), int(lens[0])

    def _of(self, layer: int) -> dict[str, Tensor]:
        return {name: values[layer] for name, values in self._learned.items()}

    def _slots(self, lens: np.ndarray) -> Tensor:
        return torch.from_numpy(lens.astype(np.int32)).to(self._storage.device)

    def _scores(
        self, layer: int, q: Tensor, scale: float, full: np.ndarray, ids: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        most, notes, layout = ids.shape[1] - 1, self._notes, self._storage.layout
        by_keys = self._rule is not None and self._rule.marks == "keys"
        look = Look(
            layer=layer,
            queries=q.float().view(len(full), -1, q.shape[-1]),
            sketches=q.new_empty(0) if by_keys else self._sketches(layer, full, ids),
            valid=torch.ones(len(full), most, dtype=torch.bool, device=ids.device) if valid is None else valid,
            scale=scale,
            read_keys=lambda: self._keys(ids[:, :most]),
            held=full.tolist(),
            keys=KeyPages(self._storage.pages, layout, ids[:, :most].to(torch.int32)) if by_keys else None,
            memory=notes.memory[layer],
            below=notes.memory[layer - 1] if layer else {},
            position=self._table.num_tokens,
            learned=self._of(layer),
        )
        scores = self._policy.score(look)
        if self._policy.keeps_first:
            scores[:, 0] = torch.inf
        return scores

    def _columns(
        self,
        layer: int,
        q: Tensor,
        scale: float,
        full: np.ndarray,
        ids: Tensor,
        counts: Tensor,
        keep: int,
    ) -> Tensor:
        """Columns int64 [H, keep + 1]: each head's chosen full pages in order, then the page under way."""
        most = ids.shape[1] - 1
        last = torch.from_numpy(full.astype(np.int64)).to(ids.device)
        valid = torch.arange(most, device=ids.device) < last[:, None]
        scores = self._scores(layer, q, scale, full, ids, valid).masked_fill(~valid, -torch.inf)
        scores.scatter_(1, (last - 1).clamp(min=0)[:, None], torch.inf)
        order = _best(scores, keep)
        order = order.masked_fill(torch.arange(keep, device=ids.device) >= counts[:, None], most + 1).sort(1).values
        columns = torch.cat([order, order.new_full((len(full), 1), most + 1)], 1)
        columns.scatter_(1, counts[:, None], last[:, None])
        return columns.clamp(max=most)

    def _sketches(self, layer: int, full: np.ndarray, ids: Tensor) -> Tensor:
        notes, most = self._notes, int(full.max())
        known = notes.sketched[layer]
        if (full > known).any():
            start = int(known[full > known].min())
            span = REMOTE_PAGES if self._policy.remote else most - start
            parts = [
                self._policy.sketch_as(
                    self._keys(ids[:, at : min(most, at + span)]), notes.memory[layer], at, self._of(layer)
                )
                for at in range(start, most, span)
            ]
            made = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            notes.write(layer, slice(None), start, made, self._by_channel)
            notes.sketched[layer] = full
        held = notes.sketches[layer]
        assert held is not None
        return held[:, :most]

    def _keys(self, ids: Tensor) -> Tensor:
        """float32 [H, n, page_size, D] of these pages."""
        fmt = self._table.fmt
        return self._storage.keys(ids).view(ids.shape[0], ids.shape[1], fmt.page_size, -1)


def _best(scores: Tensor, keep: int) -> Tensor:
    """int64 [H, keep]: the highest scores' columns, of equals the earlier, as csrc/choice.cpp takes them."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]


def _page_ids(table: PageTable, first: int, end: int) -> Tensor:
    """int64 [L, H, end - first]: so many pages of every head."""
    fmt = table.fmt
    num_heads = fmt.num_layers * fmt.num_kv_heads
    if table.num_rows == 1:
        rows, offsets = np.zeros(num_heads, np.int64), np.arange(num_heads)
    else:
        heads = [(layer, head) for layer in range(fmt.num_layers) for head in range(fmt.num_kv_heads)]
        rows = np.array([table.row(*at) for at in heads])
        offsets = np.array([table.offset(*at) for at in heads])
    ids = table.bases[rows, first:end].astype(np.int64) + offsets[:, None]
    return torch.from_numpy(ids.reshape(fmt.num_layers, fmt.num_kv_heads, -1))
