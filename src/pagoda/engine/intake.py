"""From what a caller hands over to a checked ``Request``: tokenization, defaults, policy, seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.errors import RequestError
from ..kv.grammar import parse_policy
from ..sampling.params import SamplingParams
from .pooling import check_pooling
from .request import Prompt, Request, check_prompt_ids

if TYPE_CHECKING:
    from ..kv.policies.base import KVPolicy
    from ..models.chat import ChatTemplate
    from .build import Built


def check_params(params: SamplingParams | None) -> None:
    """Raises RequestError for what is no `SamplingParams`."""
    if params is not None and not isinstance(params, SamplingParams):
        raise RequestError(f"params is a {type(params).__name__}; give SamplingParams(…)")


class Intake:
    """Checks and tokenizes. Touches no engine state, so other threads may call it while steps run."""

    def __init__(self, built: Built) -> None:
        self._built = built
        self._default_policy = parse_policy(built.config.kv)

    def request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        stream: bool = False,
        salt: str = "",
        priority: int | None = None,
        pooling: str | None = None,
    ) -> Request:
        """A request ready for ``Engine.add``. Raises RequestError or ConfigError; nothing is queued then."""
        loaded = self._built.loaded
        check_pooling(pooling)
        check_params(params)
        params = (params or SamplingParams()).merged_with(loaded.generation)
        params.check_vocabulary(loaded.shape.vocab_size)
        ids = self._ids(prompt)
        check_prompt_ids(ids, loaded.shape.vocab_size, self._built.engine.max_model_len)
        return Request(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=ids,
            params=params,
            policy=parse_policy("exact") if pooling is not None else self._policy(params),
            seed=params.seed if params.seed is not None else int.from_bytes(os.urandom(7), "little"),
            arrival=self._built.engine.clock.now(),
            salt=salt,
            priority=params.priority if priority is None else priority,
            stream=stream,
            grammar=self._built.grammars.compile(params.structured) if params.structured is not None else None,
            pooling=pooling,
        )

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's template, ready for the assistant's turn."""
        text = self.chat_template.render(messages, add_generation_prompt=True)
        return self._built.loaded.tokenizer.encode(text, add_special_tokens=False)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template or the one that was preferred, compiled once. Raises ModelError or ConfigError."""
        return self._built.loaded.chat(self._built.config.chat_template)

    def _policy(self, params: SamplingParams) -> KVPolicy:
        return parse_policy(params.kv) if params.kv is not None else self._default_policy

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty; give at least one token of text")
            return self._built.loaded.tokenizer.encode(prompt, context=self._built.engine.max_model_len)
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            return list(prompt)
        raise RequestError(f"a prompt is text or a list of token ids, not {type(prompt).__name__}")
