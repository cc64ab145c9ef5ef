"""HiGHS without its banner."""

from __future__ import annotations

from typing import Any


def silent_solver() -> Any:
    """A ``highspy.Highs`` that prints nothing."""
    import highspy

    class Silent(highspy.Highs):  # the callbacks' set-up prints a banner
        def enableCallbacks(self) -> None:
            self.silent()
            super().enableCallbacks()  # type: ignore[no-untyped-call]

    return Silent()  # type: ignore[no-untyped-call]
