"""Models without a native family file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pagoda.core.errors import UnsupportedModelError

from .families import names
from .model import Model


class FallbackModel(Model):
    """A transformers model over our KV."""

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rope_length: int | None = None,
    ) -> FallbackModel:
        """Raises UnsupportedModelError."""
        raise UnsupportedModelError(
            f"unknown architecture {config.get('model_type')!r}; native families: {', '.join(names())}"
        )
