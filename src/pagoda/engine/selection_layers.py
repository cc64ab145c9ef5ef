"""The choice of pages layer by layer, in tensors: where no program of a whole step runs, and the plain twin of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..kernels.ops.page_scores import KeyPages
from ..kv.policies._pages import Look
from .selection_held import HeldPages


class ByLayer(HeldPages):
    """Says what `kv.choices.Chooser.choose` and ``copies`` do."""

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
        scores = self._policy.scores(look)
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


def _best(scores: Tensor, keep: int) -> Tensor:
    """int64 [H, keep]: the highest scores' columns, of equals the earlier, as csrc/choice.cpp takes them."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]
