"""Steps of a model that is larger than its room: what is left on disk is read while the rest is computed.

    step = max(computing, bytes read / the disk's rate)

Of a dense model every step reads the same matrices. Of a mixture only those experts that some token chose and the cache
has not: with nothing known of the router, as many of them as the share of experts that have no place.
"""

from __future__ import annotations

from ..core.types import DTYPE_BYTES
from ..models.shape import ModelShape
from ..models.stream_plan import ExpertSizes, StreamPlan, can_stream, plan_stream
from ..weights.quantization import Quantization
from .work import StepModel


class Rooms:
    """What the engine would leave on disk of one model in one format, for any room. ``stored``: the dtype of plain
    matrices there, where it is not the one that they run in.
    """

    def __init__(self, shape: ModelShape, dtype: str, quantization: Quantization, stored: str = "") -> None:
        self._shape, self._dtype, self._quantization = shape, dtype, quantization
        formats = {m: can_stream(m, quantization) for m in shape.matrices} if stored not in ("", dtype) else {}
        self._stored = {m.name: m.cols * DTYPE_BYTES[stored] for m, found in formats.items() if found is not None}
        self._weight_bytes = shape.weight_bytes(dtype, quantization)
        mixture = any(matrix.role == "experts" for matrix in shape.matrices)
        self._experts = ExpertSizes.of(shape, dtype, quantization) if mixture else None

    def plan(self, room_bytes: int) -> StreamPlan | None:
        """None where it would gain nothing. The plan may exceed the room."""
        if self._experts is not None:
            found = self._experts.plan(room_bytes)
        else:
            found = plan_stream(self._shape, self._dtype, self._quantization, room_bytes, self._stored or None)
        return found if found.streamed and found.num_bytes < self._weight_bytes else None


class Streamed(StepModel):
    """The steps of ``inside`` with the weights of ``stream`` on a disk of that rate; ``shares_disk``: where ``inside``
    waits for the same disk, and one reads after the other.
    """

    def __init__(
        self, inside: StepModel, shape: ModelShape, stream: StreamPlan, weight_bytes: int,
        disk_bytes_per_second: float, *, shares_disk: bool = False,
    ) -> None:  # fmt: skip
        self._inside, self._stream, self._rate, self._shares_disk = inside, stream, disk_bytes_per_second, shares_disk
        experts = [matrix.count for matrix in shape.matrices if matrix.role == "experts"]
        self._chosen = shape.experts_per_token / experts[0] if experts else 1.0
        self._expert_bytes = weight_bytes - stream.resident_bytes

    def read_bytes(self, tokens: int) -> float:
        """Of one step."""
        stream = self._stream
        if not stream.num_experts:
            return float(stream.step_bytes)
        absent = 1 - stream.expert_slots / stream.num_experts
        return self._expert_bytes * (1 - (1 - self._chosen) ** tokens) * absent

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        computing = self._inside.step_seconds(decodes, slots, chunk, pairs, rows)
        reading = self.read_bytes(decodes + chunk) / self._rate
        return computing + reading if self._shares_disk else max(computing, reading)
