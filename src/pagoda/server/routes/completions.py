"""``/v1/completions``: text or token ids in, text out; ``echo`` with ``logprobs`` as evaluation harnesses need it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...engine.outputs import Completion, RequestOutput
from ...engine.request import Request as EngineRequest
from ...sampling.params import SamplingParams
from ..answering import Answering, answer, check_stream
from ..errors import bad
from ..infill import infill_ids
from ..jobs import Job
from ..logprobs import CompletionLogprobs
from ..prompts import listed
from ..report import FINISH, metrics_of, usage_of
from ..sampling import sampling_params
from ..schemas.completions import CompletionAnswer, CompletionRequest
from ..service import Service, new_id
from ..streams import DONE, event
from ..structured import constraint
from .base import ASKS, STREAMS, caller_of, request_id_of, served

router = APIRouter(tags=["completions"])


@router.post("/v1/completions", response_model=CompletionAnswer, responses=ASKS | STREAMS)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue a text. With ``stream`` the answer is server-sent events."""
    service = await served(request, body.model)
    answering = _Completion(service, body)
    job = service.job(request_id_of(request), "completions", caller_of(request), len(answering.prompts), user=body.user)
    return await answer(request, service, job, answering, stream=body.stream)


class _Completion(Answering):
    """One completion request: what is asked of the engine, and how its outputs are told."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        self.service, self.body = service, body
        self.model = service.check_model(body.model)
        service.check_priority(body.priority)
        self.prompts = listed(body.prompt)
        self.params = _params(body)
        self.pins = service.check_cache_control(body.cache_control, body.kv)
        check_stream(body, self.params)
        self.id, self.created = new_id("cmpl"), int(time.time())
        self._writers: dict[int, _ChoiceWriter] = {}

    def prepare(self, job: Job) -> list[Callable[[str], EngineRequest]]:
        salt = self.service.salt(job.caller, self.body.cache_salt)
        return [partial(self._prepare, prompt, salt) for prompt in self.prompts]

    def _prepare(self, prompt: str | list[int], salt: str, request_id: str) -> EngineRequest:
        if self.body.suffix is not None:
            if not isinstance(prompt, str):
                raise bad("suffix", "suffix: the prompt must be text then, not token ids")
            prompt = infill_ids(self.service.llm.tokenizer, prompt, self.body.suffix)
        return self.service.llm.prepare(prompt, self.params, request_id=request_id, salt=salt, stream=self.body.stream)

    async def ended(self, job: Job, outputs: list[RequestOutput]) -> int:
        if not self.pins:
            return 0
        return await self.service.pin_all(job.caller, outputs, self.body.cache_control, self.body.cache_salt)

    # -- the answer in one piece -------------------------------------------------------------------------------------

    def whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        choices = [
            self._writer(index, output, completion).write(completion.text, completion)
            for index, output in enumerate(outputs)
            for completion in output.outputs
        ]
        return self._shell(choices) | {
            "usage": self._usage(outputs), "metrics": metrics_of(outputs, held_bytes),
        }  # fmt: skip

    # -- the answer as events ----------------------------------------------------------------------------------------

    def events(self, index: int, output: RequestOutput) -> bytes:
        chunks = []
        for completion in output.outputs:
            writer = self._writer(index, output, completion)
            if writer.has_news(completion):
                chunk = self._shell([writer.write(completion.delta, completion)])
                chunks.append(event(chunk | {"usage": None} if self._tells_usage else chunk))
        return b"".join(chunks)

    def last_events(self, outputs: list[RequestOutput], held_bytes: int) -> bytes:
        if not self._tells_usage:
            return DONE
        usage = {"usage": self._usage(outputs), "metrics": metrics_of(outputs, held_bytes)}
        return event(self._shell([]) | usage) + DONE

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def _tells_usage(self) -> bool:
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    def _shell(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip

    def _usage(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        hidden = sum(output.usage.completion_tokens for output in outputs) if self.body.max_tokens == 0 else 0
        return usage_of(outputs, spare_tokens=hidden)

    def _writer(self, index: int, output: RequestOutput, completion: Completion) -> _ChoiceWriter:
        number = index * self.params.n + completion.index
        if number not in self._writers:
            self._writers[number] = _ChoiceWriter(self, number, index, output)
        return self._writers[number]


class _ChoiceWriter:
    """One choice as it is told: what of its text and its tokens the client has already."""

    def __init__(self, asked: _Completion, number: int, prompt_index: int, output: RequestOutput) -> None:
        self._body, self._number, self._output = asked.body, number, output
        self._tokenizer = asked.service.llm.tokenizer
        self._ended, self._num_told = False, 0
        prompt = asked.prompts[prompt_index]
        self._echo = ""
        if self._body.echo:
            skip = self._body.skip_special_tokens
            self._echo = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip)
        self._lists = None
        if self._body.logprobs is not None:
            self._lists = CompletionLogprobs(self._tokenizer, self._body.logprobs)
        self._begun = False

    def has_news(self, completion: Completion) -> bool:
        """Nothing is sent for a step that brought no visible text, nor after the end."""
        return not self._ended and bool(completion.delta or completion.finish_reason)

    def write(self, text: str, completion: Completion) -> dict[str, Any]:
        """The choice with its new text and tokens."""
        ids, reports = self._new_tokens(completion)
        if self._body.max_tokens == 0:
            text = ""
        if not self._begun:
            text = self._echo + text
        self._begun, self._ended = True, completion.finish_reason is not None
        reason = None if completion.finish_reason is None else FINISH[completion.finish_reason]
        logprobs = None if self._lists is None else self._lists.lists(ids, reports)
        return {
            "index": self._number, "text": text, "logprobs": logprobs,
            "finish_reason": "length" if reason and self._body.max_tokens == 0 else reason,
        }  # fmt: skip

    def _new_tokens(self, completion: Completion) -> tuple[list[int], list[Any]]:
        if self._lists is None:
            return [], []
        ids: list[int] = [] if self._body.max_tokens == 0 else completion.token_ids[self._num_told :]
        reports: list[Any] = [] if self._body.max_tokens == 0 else (completion.logprobs or [])[self._num_told :]
        self._num_told += len(ids)
        if self._body.echo and not self._begun:
            prompt_reports = self._output.prompt_logprobs or [None]
            ids, reports = self._output.prompt_token_ids + ids, prompt_reports + reports
        return ids, reports


def _params(body: CompletionRequest) -> SamplingParams:
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens", "max_tokens=0: accepted is an integer >= 1, or 0 together with echo")
    prompt_logprobs = body.logprobs if body.echo else None
    # The engine computes one token more than 0; its text is dropped, and no logprob of it is told.
    return sampling_params(
        body, max_tokens=body.max_tokens or (1 if body.max_tokens == 0 else None), best_of=body.best_of,
        logprobs=body.logprobs, prompt_logprobs=prompt_logprobs,
        structured=constraint(body.response_format, outputs=body.structured_outputs).structured,
    )  # fmt: skip
