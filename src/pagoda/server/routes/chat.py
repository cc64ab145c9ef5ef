"""``/v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...engine.outputs import Completion, RequestOutput
from ...engine.request import Request as EngineRequest
from ..answering import Answering, answer, check_stream, conversation_request
from ..conversation import Conversation, chat_tools, from_chat_messages, require_template, template_variables
from ..errors import bad
from ..jobs import Job
from ..logprobs import chat_logprobs
from ..message import AnswerMessage, delta_dict
from ..parsers.base import Delta, OutputParser
from ..parsers.choose import make_parser
from ..parsers.one_call import OneCall
from ..report import FINISH, metrics_of, usage_of
from ..sampling import read_by, sampling_params
from ..schemas.chat import ChatAnswer, ChatRequest
from ..service import Service, new_id
from ..streams import DONE, event
from ..structured import constraint
from ..thinking import thoughts_of
from .base import ASKS, STREAMS, caller_of, request_id_of, served

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions", response_model=ChatAnswer, response_model_exclude_unset=True, responses=ASKS | STREAMS
)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation. With ``stream`` the answer is server-sent events."""
    service = await served(request, body.model)
    asked = _Chat(service, body)
    labels = {"user": body.user or body.safety_identifier, "metadata": body.metadata}
    job = service.job(request_id_of(request), "chat", caller_of(request), **labels)
    return await answer(request, service, job, asked, stream=body.stream)


class _Chat(Answering):
    """One chat request: what is asked of the engine, and how its outputs are told."""

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self.service, self.body = service, body
        self.model = service.check_model(body.model)
        service.check_priority(body.priority)
        require_template(service.llm)
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise bad("max_tokens", "max_tokens and max_completion_tokens are two names of one limit; give one")
        if body.top_logprobs is not None and not body.logprobs:
            raise bad("top_logprobs", "top_logprobs: set logprobs to true as well")
        self.form = constraint(
            body.response_format, body.tools, body.tool_choice, body.parallel_tool_calls,
            outputs=body.structured_outputs, service=service,
        )  # fmt: skip
        self.thoughts = thoughts_of(service, body.thinking_token_budget, self.form, "thinking_token_budget")
        self.params = sampling_params(
            body, max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            structured=self.form.structured,
        )  # fmt: skip
        self.pins = service.check_cache_control(body.cache_control, body.kv)
        check_stream(body, self.params)
        self.conversation = Conversation(
            from_chat_messages(body.messages),
            None if body.tool_choice == "none" else chat_tools(body.tools),
            template_variables(service.llm, body.reasoning_effort, body.chat_template_kwargs),
        )
        self.params = read_by(self.params, self.parser())
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self._writers: dict[int, _ChoiceWriter] = {}

    def parser(self) -> OutputParser:
        """A fresh one for each choice."""
        parser = make_parser(self.service, self.conversation, self.body.tool_choice, held_to_form=self.form.whole)
        return OneCall(parser) if self.body.parallel_tool_calls is False else parser

    def prepare(self, job: Job) -> list[Callable[[str], EngineRequest]]:
        return conversation_request(self.service, job, self.conversation, self.params, self.body, self.thoughts)

    async def ended(self, job: Job, outputs: list[RequestOutput]) -> int:
        if not self.pins:
            return 0
        return await self.service.pin_all(job.caller, outputs, self.body.cache_control, self.body.cache_salt)

    # -- the answer in one piece -------------------------------------------------------------------------------------

    def whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        choices = [self._writer(completion).whole(completion) for completion in outputs[0].outputs]
        return self._shell("chat.completion", choices) | {
            "usage": usage_of(outputs), "metrics": metrics_of(outputs, held_bytes),
        }  # fmt: skip

    # -- the answer as events ----------------------------------------------------------------------------------------

    def first_events(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            for index in range(self.params.n)
        )

    def events(self, index: int, output: RequestOutput) -> bytes:
        choices = [choice for c in output.outputs for choice in self._writer(c).news(c)]
        return b"".join([self._chunk(choice) for choice in choices])

    def last_events(self, outputs: list[RequestOutput], held_bytes: int) -> bytes:
        if not self._tells_usage:
            return DONE
        usage = {"usage": usage_of(outputs), "metrics": metrics_of(outputs, held_bytes)}
        return event(self._shell("chat.completion.chunk", []) | usage) + DONE

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def _tells_usage(self) -> bool:
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = self._shell("chat.completion.chunk", [choice])
        return event(chunk | {"usage": None} if self._tells_usage else chunk)

    def _shell(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _writer(self, completion: Completion) -> _ChoiceWriter:
        if completion.index not in self._writers:
            self._writers[completion.index] = _ChoiceWriter(self, completion.index)
        return self._writers[completion.index]


class _ChoiceWriter:
    """One choice as it is told: its parser, and how many of its tokens the client has."""

    def __init__(self, asked: _Chat, index: int) -> None:
        self._asked, self._index, self._parser = asked, index, asked.parser()
        self._ended, self._num_told, self._has_calls = False, 0, False

    def whole(self, completion: Completion) -> dict[str, Any]:
        """The finished choice."""
        message = AnswerMessage()
        for delta in (self._parser.push(completion.text), self._parser.finish()):
            message.add(delta)
        return {
            "index": self._index, "message": message.as_dict(), "logprobs": self._logprobs(completion),
            "finish_reason": self._reason(completion, bool(message.calls)),
        }  # fmt: skip

    def news(self, completion: Completion) -> list[dict[str, Any]]:
        """The choice of the chunk that tells this step, if there is anything to tell."""
        if self._ended:
            return []
        self._ended = completion.finish_reason is not None
        news = self._parser.push(completion.delta) if completion.delta else Delta()
        if self._ended:
            news.extend(self._parser.finish())
        if not news and not self._ended:
            return []
        self._has_calls = self._has_calls or bool(news.tool_calls)
        return [
            {
                "index": self._index, "delta": delta_dict(news), "logprobs": self._logprobs(completion),
                "finish_reason": self._reason(completion, self._has_calls),
            }
        ]  # fmt: skip

    def _reason(self, completion: Completion, has_calls: bool) -> str | None:
        if completion.finish_reason is None:
            return None
        reason = FINISH[completion.finish_reason]
        return "tool_calls" if has_calls and reason == "stop" else reason

    def _logprobs(self, completion: Completion) -> dict[str, Any] | None:
        if completion.logprobs is None:
            return None
        reports = completion.logprobs[self._num_told :]
        self._num_told += len(reports)
        num_top = self._asked.body.top_logprobs or 0
        return {"content": chat_logprobs(self._asked.service.llm.tokenizer, reports, num_top), "refusal": None}
