"""A folder is a list: the plug-ins of a kind are the files of one package, and the file name is the registered name.

Folders of one's own join in where the environment says: with ``PAGODA_PLUGINS=/mine`` the files of
``/mine/kv/policies`` are KV policies too, those of ``/mine/bench/calibration`` calibrations, and so on.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from .errors import ConfigError, choices

PLUGINS = "PAGODA_PLUGINS"
"""Of the environment: folders laid out as this package is, with ``os.pathsep`` between them."""


class Registry:
    """The modules of one package, imported only when asked for by name.

    Files whose name starts with ``_`` and ``base`` are the room's own furniture, not plug-ins.
    A plug-in module must define ``attribute`` (for example ``POLICY`` or ``FAMILY``).
    """

    def __init__(self, package: str, kind: str, attribute: str) -> None:
        self.package, self.kind, self.attribute = package, kind, attribute

    def names(self) -> list[str]:
        """Registered names, sorted; nothing is imported but the package itself."""
        found = pkgutil.iter_modules(self._folders())
        return sorted(m.name for m in found if not m.name.startswith("_") and m.name != "base")

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
        self._folders()
        return importlib.import_module(f"{self.package}.{name}")

    def _folders(self) -> list[str]:
        """The package's own, and those that join in, which it looks into from now on."""
        path = importlib.import_module(self.package).__path__
        for root in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
            folder = str(Path(root).absolute().joinpath(*self.package.split(".")[1:]))
            if folder not in path:
                path.append(folder)
        return list(path)
