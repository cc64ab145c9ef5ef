"""What the policy of one sequence remembers between its acts, kept in step with the slots.

Per slot and head: the attention received, the token's number, and the policy's own values; they move when the slots
move. Per sequence: a ring of the newest queries, the newest hidden states, and a dict for anything else. Recomputing a
preempted sequence starts from a new state and passes through the same acts.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.types import KVFormat
from ..kernels.acts import look
from ..kernels.ops import close_rows
from ..kernels.ops.add_sums import Target
from ..kernels.shelves import Shelves
from ..kv.pages import Int32s
from ..kv.policies._inputs import Inputs
from ..kv.policies._stack import PolicyStack
from ..kv.policies.base import WEIGHTS, By, Held, Need, Ranking
from ..kv.raw_tail import RawTail
from ..kv.watching import SlotWeights
from .selection_notes import Notes

MASS, POSITIONS, RECEIVED, WANTED = "mass", "positions", "received", "wanted"
OF_WINDOW = (RECEIVED, WANTED)
OF_QUERIES = (By.RECEIVED, By.COUNTED, By.WANTED)
LOOKED = (By.VOTED, By.LARGEST)  # of the same, never summed up
RANKED_BY = {
    By.AGE: (), By.MASS: (MASS,), By.RECEIVED: (RECEIVED,), By.COUNTED: (RECEIVED, WANTED),
    By.WANTED: (RECEIVED, WANTED), By.HASHES: ("hash",), By.VOTED: (), By.LARGEST: (),
}  # fmt: skip
NOWHERE = (0, 0)


class Rows(NamedTuple):
    """A table's pages and room for the slots that an act leaves, as the kernels see them; ``lens``: the latter as the
    CPU does, where both do.
    """

    bases: Int32s
    pages: Tensor
    left: Tensor
    lens: Int32s | None


class PolicyState:
    """One sequence's memory. ``slots``: name -> [L, H, capacity], columns beyond a head's length are 0. L are the
    layers that lose slots (`PolicyStack.lossy`); the ring of queries and a selection's notes are of all.
    """

    __slots__ = (
        "_adds_mass", "_fmt", "_hidden", "_lossy", "_need_positions", "_ring", "_rows", "_stack", "_targets", "acted",
        "captured", "counts_up", "memory", "notes", "numbered", "scale", "sees_hidden", "slots", "soft_cap", "summed",
        "sums_up", "tail",
    )  # fmt: skip

    def __init__(self, stack: PolicyStack, fmt: KVFormat, shelves: Shelves) -> None:
        self._stack, self._fmt, self._lossy = stack, fmt, stack.lossy
        self.slots: dict[str, Tensor] = {}
        self._targets: dict[str, Target] = {}  # of those that sums are added to
        self.memory: dict[str, object] = {}
        self.notes = Notes(fmt.num_layers, fmt.num_kv_heads, shelves)
        self.scale, self.soft_cap = 1.0, 0.0
        self.numbered = 0  # tokens seen when the positions of all slots were written down; later slots are one a token
        self.captured = 0  # the ring holds queries of tokens up to here
        self.acted = 0  # tokens at the last act
        self.summed = 0  # tokens up to which attention was summed since then; 0: none was
        self._ring: Tensor | None = None
        self._rows: Rows | None = None
        self._hidden: Tensor | None = None
        self.tail: RawTail | None = None
        if (codec := stack.windowed) is not None:
            self.tail = RawTail(fmt, codec.window + codec.every + fmt.page_size)
        self._need_positions = Need.POSITIONS in stack.needs
        self._adds_mass = Need.PROBS in stack.needs
        self.sums_up, self.counts_up = stack.sums, Need.WANTED in stack.needs
        self.sees_hidden = Need.HIDDEN in stack.needs

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, those of a selection's notes too."""
        tensors = [*self.slots.values(), *(held for held in (self._ring, self._hidden) if held is not None)]
        tensors += [value for value in self.memory.values() if isinstance(value, Tensor)]
        notes = 0 if self._stack.selection is None else self.notes.num_bytes
        return sum(t.nbytes for t in tensors) + notes + self.tail_bytes

    @property
    def tail_bytes(self) -> int:
        """Bytes of raw tokens beside encoded pages."""
        return 0 if self.tail is None else self.tail.num_bytes

    @property
    def open_from(self) -> int | None:
        """The first slot of pages that this sequence will encode by its own queries; None where a page's codes follow
        from its tokens, and who shares them may write the same ones.
        """
        codec = self._stack.windowed
        looks = codec is not None and Need.QUERIES in codec.needs
        return self.tail.start if looks and self.tail is not None else None

    @property
    def weights(self) -> SlotWeights | None:
        """How often slots count, once some may count more than once."""
        if not self._stack.weighs:
            return None
        logs = self.slots.get(WEIGHTS, self.memory.get(WEIGHTS))
        if logs is None:
            return None
        assert isinstance(logs, Tensor)
        return SlotWeights(logs, None if self._lossy is None else tuple(self._lossy.index))

    def fork(self) -> PolicyState:
        """An independent copy, for a sequence that goes on from here."""
        twin = PolicyState(self._stack, self._fmt, self.notes.shelves)
        twin.slots = {name: values.clone() for name, values in self.slots.items()}
        twin._ring, twin._hidden = (None if held is None else held.clone() for held in (self._ring, self._hidden))
        twin.memory, twin.captured = copy.deepcopy(self.memory), self.captured
        twin.acted, twin.summed = self.acted, self.summed
        twin.numbered, twin.notes = self.numbered, self.notes.fork()
        twin.scale, twin.soft_cap = self.scale, self.soft_cap
        twin.tail = None if self.tail is None else self.tail.fork()
        return twin

    # -- during steps --------------------------------------------------------------------------------------------------

    def sums(self, start: int, num_tokens: int, act: int) -> bool:
        """Whether a step's attention is summed up for the act at ``act``: that of its window's tokens only, all of them
        or none.
        """
        first, end = act - self._stack.window, start + num_tokens
        return self.acted <= first < end <= act and self.captured <= first

    def receives(self, num_slots: int, device: torch.device) -> Target:
        """Where what slots receive in a step is added: room for ``num_slots`` at least."""
        return self._target(MASS if self._adds_mass else RECEIVED, num_slots, device)

    def counts(self, num_slots: int, device: torch.device) -> Target:
        """The same for what they are chosen."""
        return self._target(WANTED, num_slots, device)

    def _target(self, name: str, num_slots: int, device: torch.device) -> Target:
        found = self._targets.get(name)
        if found is None or found.width < num_slots:
            found = self._targets[name] = Target.of(self._grown(name, num_slots, device))
        return found

    def add_queries(self, queries: Tensor, end: int, scale: float, soft_cap: float) -> None:
        """``queries`` [L, n, Hq, D] of the tokens before ``end``; the ring keeps the newest ``window``."""
        width = self._stack.window
        if queries.shape[1] > width:
            queries = queries[:, -width:]
        self._write(queries, (end - queries.shape[1]) % width)
        self.noted(end, scale, soft_cap)

    def noted(self, end: int, scale: float, soft_cap: float) -> None:
        """The ring has the queries of the tokens before ``end``."""
        self.captured, self.scale, self.soft_cap = end, scale, soft_cap

    def ring_for(self, num: int, end: int, num_heads: int, dtype: torch.dtype) -> tuple[int, int, int]:
        """Where the ``num`` queries before token ``end`` go, on a CPU: the ring's address, its width, and the place of
        the first; the others follow, around.
        """
        if self._ring is None:
            self._ring = torch.zeros(self._fmt.num_layers, self._stack.window, num_heads, self._fmt.k_dim, dtype=dtype)
        return self._ring.data_ptr(), self._stack.window, (end - num) % self._stack.window

    def _write(self, queries: Tensor, first: int) -> None:
        """Into the ring, from ``first`` on and around."""
        width, num = self._stack.window, queries.shape[1]
        if self._ring is None:
            self._ring = queries.new_zeros(queries.shape[0], width, *queries.shape[2:])
        if num == 1:  # as nearly always
            self._ring.select(1, first).copy_(queries.select(1, 0))
        elif first + num <= width:
            self._ring[:, first : first + num] = queries
        else:
            self._ring[:, torch.arange(first, first + num, device=queries.device) % width] = queries

    def add_hidden(self, hidden: Tensor) -> None:
        """``hidden`` [n, hidden_size] of the tokens after those that were added last; the newest ``window`` stay."""
        held = hidden.float() if self._hidden is None else torch.cat([self._hidden, hidden.float()])
        self._hidden = held[-self._stack.window :].clone()

    # -- acts ----------------------------------------------------------------------------------------------------------

    def rows_of(self, bases: Int32s, device: torch.device) -> Rows:
        """Of a table's ``bases`` [R, W]: on a CPU the same memory, which is asked for once."""
        rows = self._rows
        if rows is None or rows.bases is not bases or device.type != "cpu":
            left = torch.zeros(len(bases), dtype=torch.int32, device=device)
            lens = left.numpy() if device.type == "cpu" else None
            self._rows = rows = Rows(bases, torch.from_numpy(bases).to(device), left, lens)
        return rows

    def inputs(self, num_seen: int, prompt_len: int, seed: int, lens: Tensor, fewest: int, most: int) -> Inputs:
        """What the policy is shown now, but for keys, values and calibration. ``lens`` int64 [L, H], from ``fewest`` to
        ``most``.
        """
        num_slots = most
        tracks = self._stack.eviction.tracks if self._stack.eviction is not None else ()
        inputs = Inputs(
            num_seen=num_seen,
            prompt_len=prompt_len,
            seed=seed,
            lens=lens,
            mass=self._cut(MASS, num_slots, lens) if Need.PROBS in self._stack.needs else None,
            positions=self._positions(num_slots, num_seen, lens) if self._need_positions else None,
            find_positions=lambda: self._positions(num_slots, num_seen, lens),
            tracks={name: self._cut(name, num_slots, lens) for name in tracks},
            memory=self.memory,
            newest=self.newest_queries(num_seen, self._stack.eviction.window if self._stack.eviction else 0),
            hidden=self._hidden,
            scale=self.scale,
            soft_cap=self.soft_cap,
            summed=self._summed(num_seen, num_slots, lens),
        )
        inputs.num_slots, inputs.fewest_slots = most, fewest  # known already
        return inputs

    def ranks(self, num_seen: int) -> bool:
        """Whether a `Ranking` has all that it may be by, and nobody asks for the slots' positions."""
        if self.tail is not None or self._need_positions:
            return False
        if not self._stack.looks or self.summed == num_seen:
            return True
        return self._ring is not None and self.captured == num_seen

    def received(self, num_slots: int, device: torch.device) -> Tensor | None:
        """float32 [L, H, N]: what slots received, where attention summed it up for this act."""
        return self._grown(RECEIVED, num_slots, device).narrow(2, 0, num_slots) if self.summed else None

    def rank(self, act: Any, ranking: Ranking, held: Held, next_act: int | None, device: torch.device) -> object:
        """Tells ``act`` (`kernels.acts`) what to choose by. What is returned must outlive it."""
        names, looks = RANKED_BY[ranking.by], ranking.by in LOOKED or (ranking.by in OF_QUERIES and not self.summed)
        first, second = (*(self._place(name, held, device) for name in names if not looks), NOWHERE, NOWHERE)[:2]
        positions = self._place(POSITIONS, held, device) if looks else NOWHERE  # which moves with the slots
        given = ranking.budget
        if isinstance(given, Tensor):
            assert given.dtype == torch.int64
            assert given.shape == (self._fmt.num_layers, self._fmt.num_kv_heads)
            assert given.is_contiguous()
        budgets, budget = (0, given) if isinstance(given, int) else (given.data_ptr(), 0)
        names = tuple(self.slots) if next_act is not None else tuple({WEIGHTS} & self.slots.keys())  # the rest is over
        act.rank(
            int(ranking.by), first, second, budgets, budget, ranking.sinks, ranking.recent, ranking.least, ranking.pool,
            ranking.unvoted, *ranking.stem,
            [self._place(name, held, device) for name in names if name not in OF_WINDOW],
            [self._place(name, held, device) for name in names if name in OF_WINDOW],
        )  # fmt: skip
        if (blend := ranking.blend) is not None:
            total = blend.weight + blend.count - 1
            act.blend(
                blend.pairs.data_ptr(), len(blend.pairs), blend.carrier, blend.count, blend.weight / total, 1.0 / total
            )
        if looks:
            assert self._ring is not None
            look(
                act, self._ring, self._fmt.num_kv_heads, held.num_seen, self.scale, self.soft_cap, positions,
                self._unnumbered(held.num_seen),
            )  # fmt: skip
            self.numbered = held.num_seen
        if (voters := ranking.voters) is not None:
            assert voters.dtype == torch.int64
            assert len(voters) == self._fmt.num_layers
            assert voters.is_contiguous()
            act.vote(voters.data_ptr(), voters.shape[1])
        if (planes := ranking.planes) is None:
            return ranking, self._ring
        assert self._ring is not None
        queries = self._ring[:, (held.num_seen - 1) % self._ring.shape[1]].float().contiguous()  # [L, Hq, Dk]
        group = queries.shape[1] // self._fmt.num_kv_heads
        act.hash(planes.data_ptr(), planes.shape[1], queries.data_ptr(), group, ranking.unhashed)
        return ranking, queries

    def _place(self, name: str, held: Held, device: torch.device) -> tuple[int, int]:
        """Where it lies, with room for all slots, and how wide it is."""
        return self._target(name, held.most, device)[1:]

    def _summed(self, num_seen: int, num_slots: int, lens: Tensor) -> dict[str, Tensor]:
        if not self.summed:
            return {}
        assert self.summed == num_seen, f"attention was summed up to {self.summed}, and the act is at {num_seen}"
        return {name: self._cut(name, num_slots, lens) for name in OF_WINDOW if name in self.slots}

    def acts(self, num_seen: int) -> None:
        """An act is over: a new window begins."""
        self.acted_at(num_seen)
        for name in OF_WINDOW:
            if name in self.slots:
                self.slots[name].zero_()

    def acted_at(self, num_seen: int) -> None:
        """The same, where what is of the window alone was cleared already."""
        self.acted, self.summed = num_seen, 0

    def numbers(self, num_seen: int, next_act: int | None) -> bool:
        """Whether an act has to leave behind which tokens the slots that stay are of."""
        if next_act is None:
            return False
        return self._need_positions or (self._stack.looks and next_act - self._stack.window < num_seen)

    def moving(self, next_act: int | None) -> list[Tensor]:
        """What is remembered of each slot and moves with it: all but what begins anew with an act, and of that what
        outlives the last one. ``next_act`` as for ``keep``.
        """
        over = next_act is None
        return [held for name, held in self.slots.items() if name not in OF_WINDOW and (not over or name == WEIGHTS)]

    def moved(self, num_seen: int, next_act: int | None, changed: bool = True) -> None:
        """The act at ``num_seen`` is done, and ``moving`` is where the slots are now; ``changed``: whether there is
        anything else in the pages than before. ``next_act`` as for ``keep``.
        """
        if changed and self._stack.selection is not None:
            self.notes.forget_pages()
        if next_act is None:
            self._forget()
        elif not self.numbers(num_seen, next_act):
            self.slots.pop(POSITIONS, None)
            self._targets.pop(POSITIONS, None)
            self.numbered = 0

    def _forget(self) -> None:
        """All but what attention goes on with."""
        self.slots, self.memory = (
            {WEIGHTS: held[WEIGHTS]} if WEIGHTS in held else {} for held in (self.slots, self.memory)
        )  # type: ignore[assignment]
        self._targets, self._ring, self._hidden = {}, None, None

    def keep(self, keep: Tensor, inputs: Inputs, next_act: int | None) -> None:
        """The slots moved: bool ``keep`` [N], [L, N] or [L, H, N]. ``next_act``: the tokens at which the policy acts
        again; None: never, and then nothing is remembered any more.
        """
        if self.numbers(inputs.num_seen, next_act):
            self.number(inputs.num_seen, inputs.num_slots, inputs.lens)
        self.moved(inputs.num_seen, next_act)
        if not self.slots:
            return
        if keep.dim() < 3:
            keep = (keep if keep.dim() == 1 else keep[:, None]).expand(*inputs.lens.shape, -1)
        keep = (keep & inputs.valid).flatten(0, 1)
        for held in self.moving(next_act):
            close_rows(held.flatten(0, 1), keep)

    def newest_queries(self, num_seen: int, most: int) -> Tensor | None:
        """[L, w, Hq, D] of the tokens before ``num_seen``, ``most`` at most, as the model made them; None if none were
        captured.
        """
        ring = self._ring
        if ring is None or self.captured != num_seen or not most:
            return None
        if self._lossy is not None:
            ring = ring[list(self._lossy.index)]
        room = ring.shape[1]
        width = min(room, num_seen, most)
        first = (num_seen - width) % room
        if width == room and first == 0:
            return ring
        if first + width <= room:
            return ring.narrow(1, first, width)
        return ring[:, torch.arange(num_seen - width, num_seen, device=ring.device) % room]

    def _positions(self, num_slots: int, num_seen: int, lens: Tensor) -> Tensor | None:
        if not self._need_positions and (self.summed or not self._stack.looks):
            return None
        return self.number(num_seen, num_slots, lens)

    def number(self, num_seen: int, num_slots: int, lens: Tensor) -> Tensor:
        """Writes down the positions of all slots, int64 [L, H, N]. Those that came since that was done last are the
        newest tokens, one each. Where nobody asks for more than which slots came after which queries, older slots may
        have any number below those.
        """
        held, at = self._cut(POSITIONS, num_slots, lens), torch.arange(num_slots, device=lens.device)
        ends = lens[..., None]
        positions = torch.where(at < ends - self._unnumbered(num_seen), held, num_seen - ends + at)
        held.copy_(positions.masked_fill(at >= ends, 0))
        self.numbered = num_seen
        return positions.long()

    def _unnumbered(self, num_seen: int) -> int:
        """How many of the newest slots of every head have no position yet, or more than there are."""
        return num_seen - self.numbered

    def _cut(self, name: str, num_slots: int, lens: Tensor) -> Tensor:
        return self._grown(name, num_slots, lens.device).narrow(2, 0, num_slots)

    def _grown(self, name: str, num_slots: int, device: torch.device) -> Tensor:
        """The values of that name, with room for ``num_slots``; new columns are 0."""
        held = self.slots.get(name)
        if held is None or held.shape[-1] < num_slots:
            fmt, old = self._fmt, 0 if held is None else held.shape[-1]
            layers = fmt.num_layers if self._lossy is None else len(self._lossy.index)
            grown = torch.zeros(layers, fmt.num_kv_heads, max(num_slots, old + old // 4 + 16), device=device)
            if held is not None:
                grown[..., :old] = held
            self.slots[name] = held = grown
            self._targets.pop(name, None)
        return held
