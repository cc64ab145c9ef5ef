"""Strict reading of a model's ``config.json``: key, type, default; errors name the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pagoda.core.errors import ModelError, choices


class ConfigReader:
    """A view of one config dict. Missing keys take the default given at the call (transformers' class default).

    A JSON null counts as missing for keys that cannot be null; the ``opt_*`` readers keep it as None.
    """

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self.raw, self.family = config, family

    def has(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer of at least ``least``; a missing key without a default is an error."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, value, f"an integer of at least {least}")
        return value

    def opt_integer(self, key: str, default: int | None = None, *, least: int = 1) -> int | None:
        """Like `integer`, but null (given or default) stays None."""
        if key in self.raw and self.raw[key] is None:
            return None
        return None if key not in self.raw and default is None else self.integer(key, default, least=least)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, value, "a number")
        return float(value)

    def opt_number(self, key: str, default: float | None = None) -> float | None:
        if key in self.raw and self.raw[key] is None:
            return None
        return None if key not in self.raw and default is None else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def choice(self, key: str, default: str, accepted: Iterable[str]) -> str:
        value = self._get(key, default)
        names = list(accepted)
        if value not in names:
            raise ModelError(f"{self.family} config: {choices(key, value, names)}")
        return str(value)

    def integers(self, key: str, default: Iterable[int] = ()) -> tuple[int, ...]:
        value = self._get(key, list(default))
        if not isinstance(value, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise self.error(key, value, "a list of integers")
        return tuple(value)

    def table(self, key: str) -> dict[str, Any] | None:
        """A nested object, or None where it is absent or null."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, value, "an object")
        return dict(value)

    def act(self, key: str, default: str) -> str:
        """An activation, under the name that our ops use."""
        return ACTIVATIONS[self.choice(key, default, ACTIVATIONS)]

    def must_be(self, key: str, only: object, why: str) -> None:
        """Refuse a feature that we do not run: the key may be absent, null or ``only``."""
        value = self.raw.get(key)
        if value is not None and value != only:
            raise ModelError(f"{self.family} config: {key}={value!r} is not supported ({why}); accepted: {only!r}")

    def layer_types(self, num_layers: int, default: Iterable[str]) -> tuple[str, ...]:
        """``layer_types`` if given, else the default pattern; only full_attention and sliding_attention are known."""
        value = self._get("layer_types", list(default))
        if not isinstance(value, (list, tuple)) or len(value) != num_layers:
            raise self.error("layer_types", value, f"a list of {num_layers} names, one per layer")
        for kind in value:
            if kind not in LAYER_TYPES:
                raise ModelError(f"{self.family} config: {choices('layer type', kind, LAYER_TYPES)}")
        return tuple(value)

    def error(self, key: str, value: object, accepted: str) -> ModelError:
        if value is None:
            return ModelError(f"{self.family} config: {key} is missing; it must be {accepted}")
        return ModelError(f"{self.family} config: {key}={value!r}; it must be {accepted}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        return default if value is None else value


LAYER_TYPES = ("full_attention", "sliding_attention")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
