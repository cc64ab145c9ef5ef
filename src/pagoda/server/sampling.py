"""From the fields of a request to ``SamplingParams``; what those refuse is the client's 400."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..sampling.params import SamplingParams
from .errors import bad
from .parsers.base import OutputParser
from .schemas.common import PagodaFields, SamplingFields

_SAME_NAME = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens", "n",
    "kv", "priority",
)  # fmt: skip


def sampling_params(body: SamplingFields | PagodaFields, **more: Any) -> SamplingParams:
    """``more`` comes from the endpoint: max_tokens, logprobs, best_of, … Raises ConfigError naming the field."""
    values = {name: value for name in _SAME_NAME if (value := getattr(body, name, None)) is not None}
    values["include_stop_in_output"] = getattr(body, "include_stop_str_in_output", False)
    bias = getattr(body, "logit_bias", None)
    if bias:
        values["logit_bias"] = {_token_id(key): value for key, value in bias.items()}
    if values.get("stop") == []:
        del values["stop"]
    return SamplingParams(**values | more)


def read_by(params: SamplingParams, parser: OutputParser) -> SamplingParams:
    """The text comes with its special tokens where the parser looks for them."""
    return replace(params, skip_special_tokens=False) if parser.special else params


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 12):
        raise bad("logit_bias", f"logit_bias names {key[:40]!r}; its keys are token ids")
    return int(key)
