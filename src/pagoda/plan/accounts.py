"""The ledger's accounts of an engine before there is one: the same sums that the engine leases when it is built.

runtime | weights | tokenizer | grammars | activations | staging | server | kv
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..models.shape import ModelShape
from ..sampling.scratch import logit_rows, scratch_bytes
from ..weights.quantization import Quantization

STAGING_BYTES = 16 << 20
"""Step metadata, copies between pages, sampled rows, detokenizers: small things that live for a step or a request."""

SERVER_BYTES = 64 << 20
"""Connections, requests and stored responses of ``pagoda serve``, by default."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step: so many tokens, so many sequences, of sequences that are at most ``longest`` tokens long."""

    max_num_batched_tokens: int
    max_num_seqs: int
    longest: int


def step_bytes(shape: ModelShape, dtype: str, quantization: Quantization, step: StepLimits) -> int:
    """What the largest step holds beside weights and pages (an upper estimate): the account ``activations``."""
    rows = max(min(step.max_num_seqs, step.max_num_batched_tokens), logit_rows(shape.vocab_size))
    return (
        shape.activation_bytes(step.max_num_batched_tokens, rows, dtype, max_kv_len=step.longest)
        + scratch_bytes(rows, shape.vocab_size, with_logprobs=True)
        + shape.table_bytes(step.longest, dtype)
        + shape.unpacking_bytes(quantization)
    )


@dataclass(frozen=True, slots=True)
class Accounts:
    """Bytes by account of the ledger."""

    runtime: int
    weights: int
    tokenizer: int
    grammars: int
    activations: int
    staging: int
    server: int
    kv: int

    @property
    def total(self) -> int:
        return sum(self.as_dict().values())

    @property
    def beside_kv(self) -> int:
        """All that must be there before the first page of KV."""
        return self.total - self.kv

    def as_dict(self) -> dict[str, int]:
        """Account -> bytes, in the ledger's order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
