"""What a CUDA device says about its memory, in the words in which the machine is asked (``MachineProbe``)."""

from __future__ import annotations

import torch

from ..budget import MachineProbe


class DeviceProbe(MachineProbe):
    """One device. ``rss``: what has left its free memory since the probe was made, which is before anything is loaded;
    other programs on the device are counted in, since nobody else counts them.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        torch.cuda.init()
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._free_at_first, self._total = torch.cuda.mem_get_info(self._index)
        self._peak = 0

    def free(self) -> int:
        """Bytes that nobody has."""
        return int(torch.cuda.mem_get_info(self._index)[0])

    def rss(self) -> int:
        held = max(0, self._free_at_first - self.free())
        self._peak = max(self._peak, held)
        return held

    def peak_rss(self) -> int:
        """The most that ``rss`` was when somebody asked."""
        return max(self._peak, self.rss())

    def limit(self) -> tuple[int, str]:
        return self._total, f"the memory of {torch.cuda.get_device_name(self._index)}"

    def headroom(self) -> tuple[int, str]:
        return self._free_at_first, "free device memory"
