"""``LLM``: a model in a memory budget, used from ordinary synchronous Python."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..budget import trim_heap
from ..core.errors import ConfigError, EngineClosedError, RequestError
from ..sampling.params import SamplingParams
from .budgeting import Amount, resize_weights, set_budgets
from .build import COLLECTED_BYTES, Built, build
from .config import EngineConfig
from .intake import Intake, check_params
from .outputs import RequestOutput
from .request import Prompt

Message = Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """Loads ``model`` into ``memory`` and answers prompts.

    >>> from pagoda import LLM, SamplingParams
    >>> llm = LLM("lantern", memory="1GiB")
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=8, temperature=0))[0].finish_reason
    <FinishReason.LENGTH: 'length'>
    >>> llm.close()

    Parameters
        model: a name that ships with Pagoda (``lantern``), a folder, or a hub id.
        memory: the budget of the whole process: ``"2GiB"``, bytes, a share of the machine (``0.5``), or None for what
            the cgroup and the machine leave.
        kv: what KV is kept, for requests that do not say: ``"exact"``, ``"recent(budget=0.25)"``, …
        dtype: ``auto`` (the checkpoint's), ``bfloat16``, ``float16`` or ``float32``.
        kv_cache_dtype: how KV is stored: ``auto`` (in ``dtype``), a dtype, or a codec: ``int8``, ``fp8``, ``int4``.
        quantization: ``auto`` (as the checkpoint is), ``none``, or a weight format: ``int8``, ``int4(group=64)``, …
        weights: ``resident``, ``stream`` (what does not fit is read from disk at every step), or ``auto``: stream where
            the budget is below the weights. Of a mixture, experts stay on disk.
        expert_cache: which of them are in memory: ``traced``, ``early``, ``lfu`` or ``lru`` (docs/weights.md).
        spool_dir: where weights that cannot be read from disk as they lie are packed once (default: the user's cache).
        device: ``auto``, ``cpu`` or ``cuda``.
        max_model_len: longest sequence in tokens; ``auto`` is the model's own limit, or what the budget holds.
        max_num_seqs, max_num_batched_tokens: sequences and tokens of one step.
        scheduling: which request next: ``fcfs``, ``priority``, ``sjf(weight=5.0)``, … (docs/scheduling.md).
        host_memory, device_memory: budgets of one place; ``memory`` bounds each of them too. What does not belong to
            the place where the engine runs is refused.
        kv_memory: most bytes of it that KV pages may take (default: all that is left beside weights and activations).
        kv_dir: folder that keeps the KV of prompts over restarts, with at most ``disk`` bytes (default 8GiB), each
            page for ``kv_ttl`` seconds after its last use (default: while there is room), as ``kv_dir_codec`` says:
            ``exact``, or smaller with a loss: ``int8``, ``cachegen(step=0.25)`` (docs/kv-tiers.md).
        kv_host: bytes in which prefixes stay packed in memory when their pages are needed for others, as
            ``kv_host_codec`` says (as ``kv_dir_codec``); before the disk, or without one.
        kv_offload: bytes for the KV of requests with ``kv="offload"`` or ``"quest+offload"``, outside of the pool: in
            this machine's memory, or in a file in ``kv_offload_dir``; ``kv_window`` bytes are where steps read it
            (default: 8 heads of the longest sequence; docs/kv-tiers.md).
        granularity: rows of an exact sequence's table, ``sequence`` | ``layer`` | ``head`` (same tokens, for tests).
        reserve_bytes: bytes of the budget that stay free for leases of the caller's own (``llm.lease``).
        structured_output: keep room for grammars (400 bytes a token of the vocabulary and 8 MiB); False refuses them.
        audit: recount every page reference after each step (slow; for tests).
    Raises ConfigError, ModelError or BudgetError, each a line that says what to change.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None, **options: Any
    ) -> None:
        config = EngineConfig(named(model), progress=progress, **checked_options(options))
        self._built: Built | None = build(config)
        self._intake = Intake(self._built)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._mail: dict[str, list[RequestOutput]] = {}

    # -- answers -----------------------------------------------------------------------------------------------------

    def generate(self, prompts: Prompt | Sequence[Prompt], params: Params = None) -> list[RequestOutput]:
        """Answer every prompt; outputs come in the order of the prompts.

        prompts: text, token ids, or a list of either. params: one for all, or one for each.
        Raises RequestError before anything runs if a prompt cannot be served. One that fails later ends with finish
        reason ``error`` and a text in ``error``; the others are not touched.
        """
        listed = _as_prompts(prompts)
        return self._run(
            [(prompt, param) for prompt, param in zip(listed, _as_params(params, len(listed)), strict=True)]
        )

    def chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params = None
    ) -> list[RequestOutput]:
        """As ``generate``, for one conversation or a list of them, through the model's chat template."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        self._open()
        prompts = [self._intake.render_chat(conversation) for conversation in conversations]  # type: ignore[arg-type]
        return self.generate(prompts, params)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """The answer as it grows: each output has the new text in ``delta``, the last one has ``finished`` set.

        Leaving the loop early aborts the request. Other calls may run between two outputs.
        """
        _refuse_unstreamable(params)
        request_id = self._submit(prompt, params, stream=True)
        return self._stream(request_id)

    def stream_chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """As ``stream``, for a conversation."""
        self._open()
        return self.stream(self._intake.render_chat(messages), params)

    # -- what people look at -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Ledger accounts, pages, prefix cache, queue and step times, as plain data (bytes are ints)."""
        return self._open().stats()

    def set_budget(
        self,
        memory: Amount | None = None,
        *,
        host_memory: Amount | None = None,
        device_memory: Amount | None = None,
        disk: str | int | None = None,
    ) -> int:
        """Other budgets from the next step on, as the options of the same names say them; what is not said stays.
        Returns that of the place where the engine runs, in bytes. When it shrinks, unused prefixes go first, then
        the last in rank of the running sequences wait and are computed again, to the same tokens.

        Raises BudgetError with the nearest budget that can, or ConfigError, and nothing has changed.
        """
        with self._lock:
            return set_budgets(self._open(), memory, host_memory=host_memory, device_memory=device_memory, disk=disk)

    def resize_weights(self, num_bytes: str | int) -> int:
        """Weights in bitstack take so much at most, as many blocks as fit; ``"auto"``: as many as the budget has room
        for. From the next step on; returns their bytes.

        Raises ConfigError, BudgetError or WeightsError, and nothing has changed.
        """
        with self._lock:
            return resize_weights(self._open(), num_bytes)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer: ``encode(text)``, ``decode(ids)``."""
        return self._open().loaded.tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and answer together, in tokens."""
        return self._open().engine.max_model_len

    def close(self) -> None:
        """Give every byte back. A second call does nothing; any other call afterwards raises EngineClosedError."""
        built, self._built = self._built, None
        if built is not None:
            is_large = built.loaded.model.weight_bytes > COLLECTED_BYTES
            built.close()
            del built, self._intake
            if is_large:  # a vocabulary of 150,000 words hangs on what refers to itself, and leaves 36 MiB on the heap
                gc.collect()
            trim_heap()

    def __repr__(self) -> str:
        return "<LLM, closed>" if self._built is None else f"<LLM {self._built.config.model}>"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _open(self) -> Built:
        if self._built is None:
            raise EngineClosedError("this LLM is closed; make a new one")
        return self._built

    def _submit(self, prompt: Prompt, params: SamplingParams | None, *, stream: bool = False) -> str:
        built = self._open()
        request = self._intake.request(f"request-{next(self._ids)}", prompt, params, stream=stream)
        with self._lock:
            built.engine.add(request)
            self._mail[request.request_id] = []
        return request.request_id

    def _run(self, work: list[tuple[Prompt, SamplingParams | None]]) -> list[RequestOutput]:
        submitted: list[str] = []
        try:
            submitted.extend(self._submit(prompt, params) for prompt, params in work)
            outputs = [self._wait(request_id) for request_id in submitted]
            while self._open().engine.shadows.is_busy:  # here the end of a call is when nobody waits
                self._pump()
            return outputs
        finally:  # a bad prompt among good ones, Ctrl-C: nothing of this call stays behind
            self._drop(submitted)

    def _wait(self, request_id: str) -> RequestOutput:
        while not (mail := self._mail[request_id]):
            self._pump()
        return mail[-1]

    def _stream(self, request_id: str) -> Iterator[RequestOutput]:
        try:
            finished = False
            while not finished:
                mail = self._mail[request_id]
                if not mail:
                    self._pump()
                    continue
                output = mail.pop(0)
                finished = output.finished
                yield output
        finally:
            self._drop([request_id])

    def _pump(self) -> None:
        """One step; what it says about other callers' requests waits for them."""
        with self._lock:
            for output in self._open().engine.step():
                if output.request_id in self._mail:
                    self._mail[output.request_id].append(output.tell())

    def _drop(self, request_ids: list[str]) -> None:
        with self._lock:
            for request_id in request_ids:
                self._mail.pop(request_id, None)
                if self._built is not None:
                    self._built.engine.abort(request_id)


def named(model: str | os.PathLike[str]) -> str:
    """A path as the name that the rest of the program has for it."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The keyword options of ``LLM``. Raises ConfigError naming one that does not exist."""
    accepted = [name for name in EngineConfig.__dataclass_fields__ if name not in ("model", "progress")]
    for name in options:
        if name not in accepted:
            raise ConfigError(f"LLM has no option {name!r}; accepted: {', '.join(accepted)}")
    return options


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise RequestError(f"prompts is a {type(prompts).__name__}; give text, token ids, or a list of either")
    if prompts and isinstance(prompts[0], int):
        return [list(prompts)]  # type: ignore[arg-type]
    return list(prompts)  # type: ignore[arg-type]


def _as_params(params: Params, count: int) -> list[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise RequestError(f"params is a {type(params).__name__}; give SamplingParams(…): one, or one for each prompt")
    if len(params) != count:
        raise RequestError(f"{len(params)} SamplingParams for {count} prompts; give one for all, or one for each")
    return list(params)


def _refuse_unstreamable(params: SamplingParams | None) -> None:
    check_params(params)
    if params is not None and (params.beam_width is not None or (params.best_of or params.n) > params.n):
        raise ConfigError("beam_width and best_of choose their answers at the end and cannot stream; use generate")
