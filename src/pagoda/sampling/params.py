"""`SamplingParams`: everything a request may say about how its tokens are chosen and when it ends. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from pagoda.core.errors import ConfigError, RequestError

from .checks import (
    MAX_TOKEN_ID,
    check_bias,
    check_bool,
    check_float,
    check_int,
    check_optional_int,
    check_strings,
    check_token_ids,
    refuse,
)
from .closing import Closing
from .structured import Structured

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by them leave float32's range."""
MAX_LOGPROBS = 1024
MAX_SEQUENCES = 256
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024


class UnsetFloat(float):
    """A default that knows it is one: reads as its value, and yields to the model's own default."""


class UnsetInt(int):
    """As UnsetFloat, for integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request samples. Immutable; every field is checked at construction (ConfigError).

    Length and end
        max_tokens: most tokens to generate; None = as many as the context leaves.
        min_tokens: no end-of-sequence or stop id before this many, and no stop string takes effect.
        stop: string(s) that end the text; stop_token_ids: ids that do; ignore_eos: the model's own end does not.
        include_stop_in_output: keep the stop string in the text (a stop id's text is kept likewise).
    Distribution (the order in which they act is told in `pagoda.sampling.steps`)
        temperature (0 = greedy, lowest id wins ties), top_k (0 or -1 = off), top_p, min_p, typical_p,
        repetition_penalty (prompt and output), presence_penalty and frequency_penalty (output only),
        logit_bias {token id: added logit, -inf forbids}, seed (same request and seed = same tokens).
    Form
        structured: the answer follows a JSON schema, a regex, a grammar or a list of choices (`Structured`).
        closing: a mark that comes after so many tokens at the latest (`Closing`), for example the end of thoughts.
    Several answers
        n: answers returned; best_of: sequences sampled, of which the n of highest cumulative logprob are returned.
        beam_width: beam search instead of sampling, returning the n best; length_penalty is the exponent of the length
        that a hypothesis' score is divided by; early_stopping as in transformers (True, False, "never").
    Reports
        logprobs: alternatives per generated token (0 = only the chosen one's), prompt_logprobs likewise per prompt
        token; both under the model's unmodified distribution. skip_special_tokens: leave them out of the text.
    Engine
        kv: this request's KV policy, e.g. "snapkv(budget=0.25)"; priority: lower runs earlier under that policy.

    temperature, top_k, top_p, min_p, typical_p and repetition_penalty that are not given yield to the model's
    generation defaults (`merged_with`).
    """

    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = UnsetFloat(1.0)
    top_k: int = UnsetInt(0)
    top_p: float = UnsetFloat(1.0)
    min_p: float = UnsetFloat(0.0)
    typical_p: float = UnsetFloat(1.0)
    repetition_penalty: float = UnsetFloat(1.0)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_in_output: bool = False
    skip_special_tokens: bool = True
    structured: Structured | None = None
    closing: Closing | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    beam_width: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    kv: str | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_ends()
        self._check_sequences()
        self._check_structured()
        if self.kv is not None and (not isinstance(self.kv, str) or not self.kv.strip()):
            raise refuse("kv", self.kv, "a policy such as 'exact' or 'snapkv(budget=0.25)', or None")

    # What the sampler and the engine ask.

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken and no draw is made."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def num_sequences(self) -> int:
        """Sequences that run at once for this request."""
        return self.beam_width or self.best_of or self.n

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def needs_logprobs(self) -> bool:
        """Whether each chosen token's logprob is computed: asked for, or needed to rank the answers."""
        return self.logprobs is not None or (self.best_of or self.n) > self.n

    def unset_fields(self) -> frozenset[str]:
        """Fields that the caller left to the model's defaults."""
        return frozenset(f.name for f in fields(self) if isinstance(getattr(self, f.name), UnsetFloat | UnsetInt))

    def merged_with(self, generation_defaults: Mapping[str, Any]) -> SamplingParams:
        """A copy whose unset fields take the model's ``generation_config`` values, and that has no unset fields left.

        ``do_sample: false`` there means greedy, unless the caller chose a temperature or any filter: who asks for
        ``top_p=0.9`` wants to sample. In beam search only the repetition penalty is taken.
        Raises ConfigError when the model's value is not acceptable.
        """
        unset = self.unset_fields()
        taken = {name: generation_defaults[name] for name in unset if generation_defaults.get(name) is not None}
        if self.beam_width is not None:
            taken = {name: value for name, value in taken.items() if name == "repetition_penalty"}
        elif generation_defaults.get("do_sample") is False and unset >= _DRAW_FIELDS:
            taken["temperature"] = 0.0
        settled = {name: _plain(getattr(self, name)) for name in unset}
        try:
            return replace(self, **{**settled, **taken})
        except ConfigError as error:
            raise ConfigError(f"the model's generation_config: {error}; pass the field explicitly") from error

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises RequestError when a bias or stop id is not a token of this model."""
        marks = () if self.closing is None else self.closing.ids
        for field, ids in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
            ("closing", marks),
        ):
            for token_id in ids or ():
                if token_id >= vocab_size:
                    raise RequestError(
                        f"{field} names token {token_id}; this model's token ids are 0 to {vocab_size - 1}"
                    )

    # Checks: each stores the canonical value.

    def _check_distribution(self) -> None:
        self._settle("temperature", check_float("temperature", self.temperature, 0.0, 100.0))
        self._settle("top_k", check_int("top_k", self.top_k, -1, MAX_TOKEN_ID, note=" (0 or -1 = off)"))
        self._settle("top_p", check_float("top_p", self.top_p, 0.0, 1.0))
        self._settle("min_p", check_float("min_p", self.min_p, 0.0, 1.0))
        self._settle("typical_p", check_float("typical_p", self.typical_p, 0.0, 1.0, open_low=True))
        penalty = check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        self._settle("repetition_penalty", penalty)
        self._settle("presence_penalty", check_float("presence_penalty", self.presence_penalty, -2.0, 2.0))
        self._settle("frequency_penalty", check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
        self._settle("logit_bias", check_bias("logit_bias", self.logit_bias) or None)
        seed = check_optional_int("seed", self.seed, -(2**63), 2**64 - 1, none_means="a fresh one per request")
        self._settle("seed", seed)

    def _check_ends(self) -> None:
        limit = check_optional_int("max_tokens", self.max_tokens, 1, MAX_TOKEN_ID, none_means="up to the context")
        self._settle("max_tokens", limit)
        most = limit if limit is not None else MAX_TOKEN_ID
        self._settle("min_tokens", check_int("min_tokens", self.min_tokens, 0, most, note=" (max_tokens)"))
        self._settle("stop", check_strings("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_CHARS) or None)
        ids = check_token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_IDS)
        self._settle("stop_token_ids", ids or None)
        for name in ("ignore_eos", "include_stop_in_output", "skip_special_tokens"):
            check_bool(name, getattr(self, name))

    def _check_sequences(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            check_optional_int(name, getattr(self, name), 0, MAX_LOGPROBS, none_means="not reported")
        check_int("n", self.n, 1, MAX_SEQUENCES)
        check_optional_int("best_of", self.best_of, self.n, MAX_SEQUENCES, none_means="the same as n")
        self._settle("length_penalty", check_float("length_penalty", self.length_penalty, -10.0, 10.0))
        check_int("priority", self.priority, -(2**31), MAX_TOKEN_ID)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise refuse("early_stopping", self.early_stopping, "True, False or 'never'")
        if self.beam_width is not None:
            self._check_beam()
        elif self.length_penalty != 1.0 or self.early_stopping is not False:
            raise ConfigError("length_penalty and early_stopping act in beam search only; set beam_width as well")

    def _check_structured(self) -> None:
        if self.closing is not None and not isinstance(self.closing, Closing):
            raise refuse("closing", self.closing, "a Closing, or None")
        if self.structured is None:
            return
        if not isinstance(self.structured, Structured):
            raise refuse("structured", self.structured, "a Structured, such as Structured(regex='[0-9]+'), or None")
        if self.ignore_eos:
            raise ConfigError("ignore_eos cannot be combined with structured: a structure has an end; leave it out")

    def _check_beam(self) -> None:
        width = check_int("beam_width", self.beam_width, 1, MAX_SEQUENCES, note=", or None (no beam search)")
        if self.n > width:
            raise refuse("n", self.n, f"an integer in [1, {width}] (beam_width)")
        for name, accepted in _NEUTRAL_IN_BEAM_SEARCH.items():
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}={getattr(self, name)!r} cannot be combined with beam_width; leave it out")

    def _settle(self, name: str, value: object) -> None:
        """Stores a checked value; an unset default stays recognizable."""
        if not isinstance(getattr(self, name), UnsetFloat | UnsetInt):
            object.__setattr__(self, name, value)


_DRAW_FIELDS = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p"})
_NEUTRAL_IN_BEAM_SEARCH: dict[str, tuple[object, ...]] = {
    "temperature": (0.0, 1.0),
    "top_k": (0, -1),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "seed": (None,),
    "best_of": (None,),
    "stop": (None,),
    "logprobs": (None,),
    "closing": (None,),
}


def _plain(value: float | int) -> float | int:
    return int(value) if isinstance(value, int) else float(value)
