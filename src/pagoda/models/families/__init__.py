"""One file per family, named by its Hugging Face ``model_type``. The folder is the registry.

A family file is a `Family`: how a `DecoderSpec` is read from a config dict, and a tiny random member for tests. To add
one, write ``families/<model_type>.py``: read every feature key of the config strictly (transformers' class defaults),
fill the spec, say in `Names` which checkpoint names differ from Llama's, and give `tiny` the features that make the
family special. Shapes, loading and layers follow from the spec; tests/models/test_families.py finds the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagoda.core.errors import ModelError, UnsupportedModelError
from pagoda.core.registry import Registry

from ..config import ConfigReader
from ..spec import DecoderSpec
from .base import Family

FAMILIES = Registry(__name__, "model family", "FAMILY")


def names() -> list[str]:
    """The native families, sorted."""
    return FAMILIES.names()


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config's ``model_type`` has a family file here."""
    return config.get("model_type") in FAMILIES.names()


def family(name: str) -> Family:
    """The family of that name. Raises UnsupportedModelError listing what exists."""
    if name not in FAMILIES.names():
        raise UnsupportedModelError(f"no native family {name!r}; native families: {', '.join(names())}")
    found = FAMILIES.get(name)
    if not isinstance(found, Family):
        raise TypeError(f"families/{name}.py: FAMILY must be a Family, got {type(found).__name__}")
    return found


def read_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Hugging Face config dict.

    Raises ModelError for a missing ``model_type``, a missing or ill-typed key, or an unknown value of a feature key.
    """
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ModelError("config.json has no model_type; it must name an architecture, for example llama")
    return family(name).read(ConfigReader(config, name))
