"""What a policy is shown when it acts: one sequence, all its layers, tensors on the pages' device.

L layers, H kv-heads of a layer, G query heads of each, N slots of the longest head, w queries of the window.
Slots beyond a head's length hold nothing: ``valid`` tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device

MEAN = 0.99999  # of a query's mean probability, as in ``kernels.ops.paged_attention``'s counts
PART_BYTES = 8 << 20
"""Keys and values of several layers that lie side by side in memory."""


@dataclass
class LayerInputs:
    """One layer. What was not declared as a need is None, or an error for keys and values.

    lens      int64 [H]           queries  float32 [w, H * G, Dk], oldest first; the newest is token ``num_seen - 1``
    valid     bool [H, N]         mass     float32 [H, N]         positions  int64 [H, N]
    calibration: of this layer
    """

    index: int
    num_seen: int
    lens: Tensor
    valid: Tensor
    mass: Tensor | None
    positions: Tensor | None
    queries: Tensor | None
    scale: float
    soft_cap: float
    read: Callable[[], tuple[Tensor, Tensor]]
    calibration: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def _content(self) -> tuple[Tensor, Tensor]:
        return self.read()

    @property
    def keys(self) -> Tensor:
        """float32 [H, N, Dk], rotary positions applied."""
        return self._content[0]

    @property
    def values(self) -> Tensor:
        """float32 [H, N, Dv]; of latent KV, whose values are part of its one row, the row."""
        keys, values = self._content
        return values if values.shape[-1] else keys

    @cached_property
    def logits(self) -> Tensor:
        """float32 [H, G, w, N]: scaled products of the window's queries and the slots; -inf where a query sees none."""
        assert self.queries is not None, "recent queries were not declared as a need"
        assert self.positions is not None
        heads, width = len(self.valid), len(self.queries)
        queries = self.queries.view(width, heads, -1, self.queries.shape[-1]).permute(1, 2, 0, 3)
        logits = (queries @ self.keys[:, None].transpose(2, 3)) * self.scale
        if self.soft_cap > 0:
            logits = self.soft_cap * (logits / self.soft_cap).tanh()
        newest = self.num_seen - width + self.positions.new_tensor(range(width))
        hidden = (self.positions[:, None, :] > newest[:, None]) | ~self.valid[:, None, :]
        return logits.masked_fill_(hidden[:, None], -math.inf)

    @cached_property
    def received(self) -> Tensor:
        """float32 [H, N]: attention that each slot gets from the window's queries, summed over them and their heads."""
        return self.attention.sum((1, 2))

    @cached_property
    def largest(self) -> Tensor:
        """float32 [H, N]: the most attention that each slot gets from one of the window's tokens, all heads."""
        return self.attention.sum(1).amax(1)

    @cached_property
    def wanted(self) -> Tensor:
        """float32 [H, N]: how many of the window's queries and their heads give the slot at least the mean 1/n of the n
        slots that they see (what is equal but for rounding counts).
        """
        seen = (self.attention > 0).sum(-1, keepdim=True).clamp(min=1)
        return (self.attention * seen >= MEAN).sum((1, 2)).float()

    @cached_property
    def attention(self) -> Tensor:
        """float32 [H, G, w, N]: softmax of ``logits``, what the window's queries give to the slots that are left."""
        probs: Tensor = self.logits.softmax(-1).nan_to_num_(0.0)
        return probs


@dataclass
class Inputs:
    """One sequence when its policy acts.

    lens int64 [L, H], not to be changed; ``num_seen`` tokens computed, ``prompt_len`` of them the prompt (or more than
    are computed yet).
    tracks: the policy's values per slot [L, H, N], to be changed in place; memory: anything else it wants to keep.
    """

    num_seen: int
    prompt_len: int
    seed: int
    lens: Tensor
    mass: Tensor | None = None
    positions: Tensor | None = None  # with Need.POSITIONS; else `find_positions`, where attention is computed
    tracks: Mapping[str, Tensor] = field(default_factory=dict)
    memory: dict[str, object] = field(default_factory=dict)
    calibration: Mapping[str, Tensor] = field(default_factory=dict)
    newest: Tensor | None = None  # [L, w, H * G, Dk]: ``queries`` as the model made them
    hidden: Tensor | None = None  # float32 [w, hidden_size], with Need.HIDDEN
    scale: float = 1.0
    soft_cap: float = 0.0
    read: Callable[[int], tuple[Tensor, Tensor]] | None = None
    read_part: Callable[[range, Tensor, int, bool], tuple[Tensor, Tensor]] | None = None
    weigh_slots: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    hash_slots: Callable[[Tensor, int, Tensor, Tensor], None] | None = None
    window_sums: Callable[[Tensor, Tensor, Tensor, int, float, float], tuple[Tensor, Tensor, Tensor]] | None = None
    find_positions: Callable[[], Tensor | None] = lambda: None
    slot_bytes: int = 0  # of one slot of all heads of a layer, as float32
    summed: Mapping[str, Tensor] = field(default_factory=dict)
    """``received`` and ``wanted`` [L, H, N] where attention summed them up while the queries came; else they are
    computed from the queries."""

    @cached_property
    def queries(self) -> Tensor | None:
        """float32 [L, w, H * G, Dk]: as ``LayerInputs.queries``."""
        return None if self.newest is None else self.newest.float()

    @cached_property
    def received(self) -> Tensor:
        """float32 [L, H, N]: as ``LayerInputs.received``, with ``Need.RECEIVED``."""
        return self.summed["received"] if self.summed else self._looked[0]

    @cached_property
    def wanted(self) -> Tensor:
        """float32 [L, H, N]: as ``LayerInputs.wanted``, with ``Need.WANTED``."""
        return self.summed["wanted"] if self.summed else self._looked[1]

    @cached_property
    def largest(self) -> Tensor:
        """float32 [L, H, N]: as ``LayerInputs.largest``, with ``Need.QUERIES``."""
        return self._looked[2]

    @cached_property
    def _looked(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three by the window's queries."""
        import torch

        if self.window_sums is not None and self.newest is not None and self.all_positions is not None:
            return self.window_sums(
                self.lens, self.all_positions, self.newest, self.num_seen, self.scale, self.soft_cap
            )
        received, wanted, largest = zip(
            *((layer.received, layer.wanted, layer.largest) for layer in self.layers()), strict=True
        )
        return torch.stack(received), torch.stack(wanted), torch.stack(largest)

    def received_from(self, heads: Tensor) -> Tensor:
        """float32 [L, N]: attention that each slot gets from the window's queries of some query heads, int64 [L, n] of
        the ``H * G`` of each layer, summed over both. With ``Need.QUERIES``.
        """
        import torch

        layers = zip(self.layers(), heads, strict=True)
        return torch.stack([layer.attention.flatten(0, 1)[mine].sum((0, 1)) for layer, mine in layers])

    def parts(self, first: Tensor, count: int, *, values: bool = True) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Keys and values of ``count`` slots of every head, from ``first`` int64 [L, H] on, as many layers at once as
        fit into PART_BYTES: layers, k float32 [l, H, count, Dk], v [l, H, count, Dv] (no columns where no ``values``
        are asked for). What is beyond a head is any.
        """
        assert self.read_part is not None, "keys or values were not declared as a need"
        room = max(1, PART_BYTES // max(1, count * self.slot_bytes))
        for at in range(0, self.num_layers, room):
            layers = range(at, min(self.num_layers, at + room))
            yield layers, *self.read_part(layers, first, count, values)

    def weigh(self, pairs: Tensor, first: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of slots times weights float32 [n, count], keys and values float32 [n, D]: of each head in ``pairs``
        int64 [n] (numbered through all layers) those from ``first`` int64 [n] on.
        """
        assert self.weigh_slots is not None, "keys or values were not declared as a need"
        return self.weigh_slots(pairs, first, weights)

    def judge_new(
        self, track: Tensor, judge: Callable[[range, Tensor, Tensor], Tensor], *, values: bool = True
    ) -> None:
        """Slots of the tokens since the last call get their place in ``track`` [L, H, N]: what ``judge(layers, k, v)``,
        as in ``parts``, says of them, float32 [l, H, new].
        """
        first, num_new = self._new()
        for layers, k, v in self.parts(first, num_new, values=values):
            here = slice(layers.start, layers.stop)
            self._put(track[here], first[here], judge(layers, k, v))

    def hash_new(self, track: Tensor, planes: Tensor) -> None:
        """As ``judge_new`` with hashes of keys (``ops.hash_slots``), which are made where they lie."""
        assert self.hash_slots is not None, "keys were not declared as a need"
        self.hash_slots(*self._new(), planes, track)

    def _new(self) -> tuple[Tensor, int]:
        """First slots int64 [L, H] of the tokens that were not judged yet, and how many those are: they will be now."""
        seen = self.memory.get("judged", 0)
        assert isinstance(seen, int)
        self.memory["judged"], num_new = self.num_seen, self.num_seen - seen
        if self.fewest_slots == self.num_slots:
            return self.same(self.num_slots - num_new), num_new
        return self.lens - num_new, num_new

    def _put(self, track: Tensor, first: Tensor, found: Tensor) -> None:
        """``found`` [l, H, n] for the last n slots of each head."""
        num_new = found.shape[-1]
        if self.fewest_slots == self.num_slots:
            track[..., self.num_slots - num_new : self.num_slots] = found
        else:
            track.scatter_(-1, first[..., None] + first.new_tensor(range(num_new)), found)

    def same(self, slots: int) -> Tensor:
        """int64 [L, H]: the same number for every head; not to be changed."""
        return same(self.num_layers, self.num_kv_heads, slots, self.lens.device)

    @property
    def num_layers(self) -> int:
        return int(self.lens.shape[0])

    @property
    def num_kv_heads(self) -> int:
        return int(self.lens.shape[1])

    @cached_property
    def num_slots(self) -> int:
        """Slots of the longest head."""
        return int(self.lens.max())

    @cached_property
    def fewest_slots(self) -> int:
        """Slots of the shortest head."""
        return int(self.lens.min())

    @cached_property
    def valid(self) -> Tensor:
        """bool [L, H, N]."""
        import torch

        return torch.arange(self.num_slots, device=self.lens.device) < self.lens[..., None]

    def layers(self) -> Iterator[LayerInputs]:
        """Every layer in turn; what it reads of keys and values is gone when the next one comes."""
        for index in range(self.num_layers):
            yield self.layer(index)

    def layer(self, index: int) -> LayerInputs:
        """One layer."""
        return LayerInputs(
            index=index,
            num_seen=self.num_seen,
            lens=self.lens[index],
            valid=self.valid[index],
            mass=None if self.mass is None else self.mass[index],
            positions=None if self.all_positions is None else self.all_positions[index],
            queries=None if self.queries is None else self.queries[index],
            scale=self.scale,
            soft_cap=self.soft_cap,
            read=lambda: self._read(index),
            calibration={name: found[index] for name, found in self.calibration.items()},
        )

    @cached_property
    def all_positions(self) -> Tensor | None:
        """As ``positions``, also where they are no need; before the slots move."""
        return self.find_positions() if self.positions is None else self.positions

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        assert self.read is not None, "keys or values were not declared as a need"
        return self.read(index)


@lru_cache(maxsize=256)
def same(layers: int, heads: int, slots: int, device: device) -> Tensor:
    """int64 [L, H]: the same number for every head; not to be changed."""
    import torch

    return torch.full((layers, heads), slots, device=device)
