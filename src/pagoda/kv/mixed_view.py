"""One step over sequences whose pages have different formats: a view for each format, each over its share of the batch.

The model brings all tokens layer by layer; a view gets those of its sequences, and the answers go back into place. A
step of a single format needs none of this and takes ``StepView`` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..kernels.step import StepArrays
from .offload.view import OffloadView
from .view import StepView
from .watching import Received
from .window_view import WindowView


class MixedView:
    """The KV view (see ``models.layers.step.KVView``) over several. ``members[i]``: the batch's sequences that view i
    holds, in its order; ``q_lens``: tokens of every sequence of the batch.
    """

    def __init__(
        self,
        views: Sequence[StepView | WindowView | OffloadView],
        members: Sequence[Sequence[int]],
        q_lens: Sequence[int],
        device: torch.device,
        tap: Callable[[int, Tensor, Mapping[str, object]], None] | None = None,
    ) -> None:
        starts = np.concatenate([[0], np.cumsum(q_lens)])
        self._views, self._members, self._tap = views, members, tap
        self._tokens = [
            torch.from_numpy(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in mine])).to(device)
            for mine in members
        ]

    def arrays(self) -> StepArrays | None:
        """None: every layer calls ``attend``."""
        return None

    in_program = True

    @property
    def received(self) -> list[Received]:
        """As ``StepView.received``, by the batch's sequences."""
        return [
            replace(received, members=[mine[s] for s in received.members])
            for view, mine in zip(self._views, self._members, strict=True)
            for received in view.received
        ]

    @property
    def added(self) -> list[int]:
        """As ``StepView.added``: none, since every layer calls ``attend``."""
        return []

    @property
    def failures(self) -> dict[int, str]:
        """As ``OffloadView.failures``, by the batch's sequences."""
        found: dict[int, str] = {}
        for view, mine in zip(self._views, self._members, strict=True):
            found |= {mine[s]: why for s, why in view.failures.items()}
        return found

    def close(self) -> None:
        """As ``OffloadView.close``."""
        for view in self._views:
            view.close()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        """As ``StepView.attend``."""
        return self._each(
            layer,
            q,
            options,
            lambda view, at: view.attend(layer, q[at], k[at], v[at], **options),  # type: ignore[arg-type]
        )

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, **options: object) -> Tensor:
        """As ``StepView.attend_latent``."""
        return self._each(
            layer,
            q,
            options,
            lambda view, at: view.attend_latent(layer, q[at], latent[at], **options),  # type: ignore[arg-type]
        )

    def _each(
        self,
        layer: int,
        q: Tensor,
        options: Mapping[str, object],
        attend: Callable[[StepView | WindowView | OffloadView, Tensor], Tensor],
    ) -> Tensor:
        if self._tap is not None:
            self._tap(layer, q, options)
        parts = [attend(view, at) for view, at in zip(self._views, self._tokens, strict=True)]
        out = q.new_empty(len(q), *parts[0].shape[1:])
        for part, at in zip(parts, self._tokens, strict=True):
            out.index_copy_(0, at, part)
        return out
