"""A folder is a list: the plug-ins of a kind are the files of one package, and the file name is the registered name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from .errors import ConfigError, choices


class Registry:
    """The modules of one package, imported only when asked for by name.

    Files whose name starts with ``_`` and ``base`` are the room's own furniture, not plug-ins.
    A plug-in module must define ``attribute`` (for example ``POLICY`` or ``FAMILY``).
    """

    def __init__(self, package: str, kind: str, attribute: str) -> None:
        self.package, self.kind, self.attribute = package, kind, attribute

    def names(self) -> list[str]:
        """Registered names, sorted; nothing is imported but the package itself."""
        path = importlib.import_module(self.package).__path__
        return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_") and m.name != "base")

    def check(self, name: str) -> None:
        """Raises ConfigError listing what exists where none has that name; nothing is imported."""
        if name not in self.names():
            raise ConfigError(choices(self.kind, name, self.names()))

    def get(self, name: str) -> object:
        """The plug-in of that name. Raises ConfigError listing what exists."""
        self.check(name)
        return getattr(self.module(name), self.attribute)

    def items(self) -> Iterator[tuple[str, object]]:
        """Every plug-in, by name (imports them all: for tests and docs)."""
        for name in self.names():
            yield name, self.get(name)

    def module(self, name: str) -> ModuleType:
        """The plug-in's file, for what it says beside its attribute."""
        return importlib.import_module(f"{self.package}.{name}")
