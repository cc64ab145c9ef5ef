"""What a client asked for, checked and turned into token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..core.errors import RequestError
from ..kv.policies._stack import PolicyStack
from ..sampling.grammar import Grammar
from ..sampling.params import SamplingParams

Prompt = str | list[int]


@dataclass(slots=True)
class Request:
    """A checked request. ``seed`` is the params' or one drawn at submission; ``arrival`` is in seconds of the clock;
    ``grammar`` is the compiled form of ``params.structured``; ``tenant`` is whose share of the machine it takes,
    under a scheduling policy that divides it.

    teacher: teacher forcing, for measurements. Called with the number of tokens so far and the logits float32 [vocab];
    what it says is the next token, whatever the logits are.
    observer: sees the same before each token is sampled.
    """

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    policy: PolicyStack
    seed: int
    arrival: float
    salt: str = ""
    tenant: str = ""
    priority: int = 0
    stream: bool = False
    grammar: Grammar | None = None
    pooling: str | None = None
    """Not None: nothing is generated, the prompt's hidden states are pooled (see ``pooling``)."""
    teacher: Callable[[int, Tensor], int] | None = None
    observer: Callable[[int, Tensor], None] | None = None


def check_prompt_ids(ids: list[int], vocab_size: int, max_model_len: int) -> None:
    """Raises RequestError for an empty prompt, an id that the vocabulary lacks, or a prompt that fills the context."""
    if not ids:
        raise RequestError("the prompt is empty; give at least one token of text")
    for position, token in enumerate(ids):
        if not isinstance(token, int) or isinstance(token, bool):
            raise RequestError(f"prompt token {position} is {token!r}; token ids are whole numbers")
        if not 0 <= token < vocab_size:
            raise RequestError(f"prompt token {position} is {token}; this model's ids are 0 to {vocab_size - 1}")
    if len(ids) >= max_model_len:
        raise RequestError(
            f"the prompt has {len(ids)} tokens and leaves no room for an answer: the context is {max_model_len}; "
            "shorten the prompt, or raise max_model_len where the model can do more"
        )
