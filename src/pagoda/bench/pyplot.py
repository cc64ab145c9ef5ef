"""matplotlib for pictures in files: imported when one is drawn, and told apart from a missing installation."""

from __future__ import annotations

from types import ModuleType

from ..core.errors import ConfigError


def pyplot() -> ModuleType:
    """``matplotlib.pyplot`` without a window. Raises ConfigError where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("plots need matplotlib; run: pip install 'pagoda-llm[bench]'") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
