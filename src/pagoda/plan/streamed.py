"""Steps of a model that is larger than its room: what is left on disk is read while the rest is computed.

    step = max(computing, bytes read / the disk's rate)

Of a dense model every step reads the same matrices. Of a mixture only those experts that some token chose and the cache
has not: with nothing known of the router, as many of them as the share of experts that have no place.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..models.shape import ModelShape
from ..models.stream_plan import ExpertSizes, StreamPlan, StreamSizes, can_cache
from ..weights.quantization import Quantization
from ..weights.rows import OnDisk
from .work import StepModel

SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Rooms:
    """What the engine would leave on disk of one model in one format, for any room. ``stored``: the dtype of plain
    matrices there, where it is not the one that they run in. ``found``: what streaming a known file's matrices takes;
    ``packed``: those of a file of `pagoda pack`, which is taken before any other.
    """

    def __init__(
        self, shape: ModelShape, dtype: str, quantization: Quantization, stored: str = "",
        found: Mapping[str, OnDisk] | None = None, packed: Mapping[str, OnDisk] | None = None,
    ) -> None:  # fmt: skip
        self._weight_bytes = shape.weight_bytes(dtype, quantization)
        mixture = any(matrix.role == "experts" for matrix in shape.matrices)
        self._sizes: StreamSizes | ExpertSizes | None
        if packed:
            self._sizes = StreamSizes.of_packed(shape, dtype, quantization, packed)
        elif not mixture:
            plain = SAFETENSORS[stored] if stored else ""
            self._sizes = StreamSizes.of(shape, dtype, quantization, found, plain)
        else:
            self._sizes = ExpertSizes.of(shape, dtype, quantization) if can_cache(shape, quantization) else None

    def plan(self, room_bytes: int) -> StreamPlan | None:
        """None where it would gain nothing. The plan may exceed the room."""
        if self._sizes is None:
            return None
        found = self._sizes.plan(room_bytes)
        return found if found.streamed and found.num_bytes < self._weight_bytes else None


class Streamed(StepModel):
    """The steps of ``inside`` with the weights of ``stream`` on a disk of that rate; ``shares_disk``: where ``inside``
    waits for the same disk, and one reads after the other.
    """

    def __init__(
        self, inside: StepModel, shape: ModelShape, stream: StreamPlan, disk_bytes_per_second: float, *,
        shares_disk: bool = False,
    ) -> None:  # fmt: skip
        self._inside, self._stream, self._rate, self._shares_disk = inside, stream, disk_bytes_per_second, shares_disk
        experts = [matrix.count for matrix in shape.matrices if matrix.role == "experts"]
        self._chosen = shape.experts_per_token / experts[0] if experts else 1.0

    def read_bytes(self, tokens: int) -> float:
        """Of one step."""
        stream = self._stream
        if not stream.num_experts:
            return float(stream.step_bytes)
        absent = 1 - stream.expert_slots / stream.num_experts
        return stream.expert_bytes * (1 - (1 - self._chosen) ** tokens) * absent

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        computing = self._inside.step_seconds(decodes, slots, chunk, pairs, rows)
        reading = self.read_bytes(decodes + chunk) / self._rate
        return computing + reading if self._shares_disk else max(computing, reading)
