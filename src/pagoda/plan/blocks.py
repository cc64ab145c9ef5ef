"""A model over device, host and disk: what a placement divides, and what a step of a block does with it.

FlexGen's block schedule (arXiv:2303.06865, section 4.2): ``batches`` batches of ``batch`` sequences go through a layer
one after another, so that its weights come once for all of them, while the batches' KV and activations take turns::

    layer 1: batch 1, batch 2, … │ layer 2: batch 1, batch 2, … │ …        once for the prompts, once for every token

What it is extended by here: KV in a codec and under a policy (bytes held, slots read), experts of which a step reads
those that were chosen, whole layers, and a host whose processor may attend, or run layers, where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.types import DTYPE_BYTES, KVFormat
from ..models.shape import ModelShape
from ..weights.quantization import Quantization, Role
from .demand import Demand
from .kept import Kept
from .machine import Machine
from .placement import Item, Phase, Use
from .roofline import HEAD, Roofline

HOST = 1
"""The tier that has a processor of its own."""


@dataclass(frozen=True, slots=True)
class Block:
    """``batches`` times ``batch`` sequences at once."""

    batch: int
    batches: int

    @property
    def sequences(self) -> int:
        return self.batch * self.batches


class BlockModel:
    """One model in one format on a device, with the host that it stands in."""

    def __init__(
        self, shape: ModelShape, dtype: str, quantization: Quantization, fmt: KVFormat, device: Machine, host: Machine
    ) -> None:
        self._shape, self._fmt, self._device = shape, fmt, device
        self.quantization, self._size = quantization, DTYPE_BYTES[dtype]
        self._near = Roofline(shape, dtype, quantization, fmt.dtype, device)
        self._there = Roofline(shape, dtype, quantization, fmt.dtype, host)
        self._bytes = role_bytes(shape, dtype, quantization)
        self._num_experts = max((matrix.count for matrix in shape.matrices if matrix.role == "experts"), default=0)

    def items(self, block: Block, kept: Kept, demand: Demand) -> list[Item]:
        """weights | experts | head | kv | activations: those that there are."""
        layers, found = self._shape.num_layers, list[Item]()
        for role, name, pieces in (("linear", "weights", layers), ("experts", "experts", self._num_experts * layers)):
            if num_bytes := self._bytes[role]:
                found.append(Item(name, num_bytes, piece=num_bytes // pieces, parts=layers))
        if head := self._bytes["embed"]:
            found.append(Item("head", head, piece=head, parts=1))
        peaks = block.batch * kept.peak_blocks + (block.sequences - block.batch) * kept.held_blocks
        kv_bytes = peaks * self._fmt.block_bytes
        found.append(Item("kv", kv_bytes, piece=kv_bytes // (layers * block.batches)))
        if block.batches > 1:  # one batch's are the step's own
            num_bytes = self._activation_bytes(block.sequences * demand.prompt)
            found.append(Item("activations", num_bytes, piece=num_bytes // block.batches))
        return found

    def phases(self, block: Block, kept: Kept, demand: Demand) -> list[Phase]:
        """The step of all prompts, and that of every further token."""
        return [self._prompt(block, demand), self._decode(block, kept, demand)]

    def _prompt(self, block: Block, demand: Demand) -> Phase:
        tokens = block.batch * demand.prompt
        attention = self._near.attention_seconds(0, 0.0, tokens, tokens * demand.prompt / 2)
        fixed = block.batches * (self._near.fixed_seconds(block.batch) + attention)
        uses = self._weights(block, tokens, block.sequences * demand.prompt)
        share = self._fmt.blocks_for(demand.prompt) / self._fmt.blocks_for(demand.length)
        uses["kv"] = Use(read=0.0, write=share)
        layers = float(self._shape.num_layers)
        uses["activations"] = Use(read=layers, write=layers)
        return Phase("prompt", fixed, uses)

    def _decode(self, block: Block, kept: Kept, demand: Demand) -> Phase:
        num, slots = block.sequences, block.sequences * kept.read_slots
        uses = self._weights(block, block.batch, num)
        read_bytes = slots * self._fmt.bytes_per_token
        held_bytes = max(1, self.items(block, kept, demand)[-1 if block.batches == 1 else -2].num_bytes)
        near = read_bytes / self._device.read_bytes_per_second
        there = max(near, self._there.attention_seconds(num, slots, 0, 0.0))
        written = num * self._fmt.bytes_per_token / held_bytes
        uses["kv"] = Use(min(1.0, read_bytes / held_bytes), written, near, {HOST: there})
        layers = self._shape.num_layers / demand.prompt
        uses["activations"] = Use(read=layers, write=layers)
        fixed = block.batches * self._near.fixed_seconds(block.batch)
        return Phase("decode", fixed, uses, steps=float(max(1, demand.output - 1)))

    def _weights(self, block: Block, tokens: int, all_tokens: int) -> dict[str, Use]:
        """``tokens`` of a batch on the device, ``all_tokens`` of the block where the host multiplies."""
        found = {}
        roles: tuple[tuple[Role, str], ...] = (("linear", "weights"), ("experts", "experts"), ("embed", "head"))
        for role, name in roles:
            rows, all_rows = block.batch, block.sequences
            near = block.batches * self._near.product_seconds(role, tokens, rows)
            there = max(near, self._there.product_seconds(role, all_tokens, all_rows))
            found[name] = Use(self._read(role, all_tokens), 0.0, near, {HOST: there})
        return found

    def _read(self, role: Role, tokens: int) -> float:
        """The share of these matrices that a step needs: experts that some token chooses; of an embedding that is not
        the head too, nothing to speak of.
        """
        if role == "embed":
            return 0.5 if any(matrix.name == HEAD for matrix in self._shape.matrices) else 1.0
        if role != "experts" or not self._num_experts:
            return 1.0
        return float(1 - (1 - self._shape.experts_per_token / self._num_experts) ** tokens)

    def _activation_bytes(self, tokens: int) -> int:
        return tokens * self._shape.hidden_size * self._size


def role_bytes(shape: ModelShape, dtype: str, quantization: Quantization) -> dict[str, int]:
    """Bytes of the layers' matrices and vectors (``linear``), of experts, of embedding and head; together the model."""
    found = dict.fromkeys(("experts", "embed"), 0)
    for matrix in shape.matrices:
        if matrix.role in found:
            plain = matrix.rows * matrix.cols * DTYPE_BYTES[dtype]
            for packed, count in quantization.each(matrix.name, matrix.role, matrix.count).items():
                found[matrix.role] += count * (plain if packed is None else packed.num_bytes(matrix.rows, matrix.cols))
    return found | {"linear": shape.weight_bytes(dtype, quantization) - sum(found.values())}
