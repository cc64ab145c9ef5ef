"""``/v1/messages``: Anthropic's form over the same engine, and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...core.types import FinishReason
from ...engine.outputs import Completion, RequestOutput
from ...engine.request import Request as EngineRequest
from ..answering import Answering, answer, conversation_request
from ..anthropic_form import as_conversation, budget_of, format_of, pin_seconds, single_call, tool_choice_of, tools_of
from ..errors import ApiError
from ..jobs import Job
from ..parsers.base import OutputParser
from ..parsers.choose import make_parser
from ..parsers.one_call import OneCall
from ..sampling import read_by, sampling_params
from ..schemas.messages import AnthropicError, CountAnswer, CountRequest, MessagesAnswer, MessagesRequest
from ..segments import Kind, Segment, Segments
from ..service import Service, new_id
from ..streams import named_event
from ..structured import constraint
from ..thinking import thoughts_of
from .base import STREAMS, caller_of, errors, json_answer, request_id_of, served

router = APIRouter(tags=["messages"])
_ASKS = errors(400, 401, 404, 405, 408, 413, 429, 500, 503, 504, model=AnthropicError)


@router.post("/v1/messages", response_model=MessagesAnswer, responses=_ASKS | STREAMS)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation in Anthropic's form. With ``stream`` the answer is server-sent events."""
    service = await served(request, body.model)
    asked = _Messages(service, body)
    user = body.metadata.user_id if body.metadata is not None else None
    job = service.job(request_id_of(request), "messages", caller_of(request), user=user)
    return await answer(request, service, job, asked, stream=body.stream)


@router.post("/v1/messages/count_tokens", response_model=CountAnswer, responses=_ASKS)
async def count_tokens(body: CountRequest, request: Request) -> Response:
    """How many tokens the prompt has."""
    service = await served(request, body.model, awake=False)
    conversation = as_conversation(service.llm, body)
    ids = await asyncio.to_thread(conversation.ids, service.llm)
    return json_answer({"input_tokens": len(ids)})


class _Messages(Answering):
    def __init__(self, service: Service, body: MessagesRequest) -> None:
        self.service, self.body = service, body
        self.model = service.check_model(body.model)
        service.check_priority(body.priority)
        self.conversation = as_conversation(service.llm, body)
        self.pin_seconds = pin_seconds(service.llm, body)
        choice = tool_choice_of(body)
        self.form = constraint(
            format_of(body), tools_of(body), choice, not single_call(body),
            outputs=body.structured_outputs, service=service,
        )  # fmt: skip
        self.thoughts = thoughts_of(service, budget_of(body), self.form, "thinking.budget_tokens")
        self.params = sampling_params(
            body, max_tokens=body.max_tokens, stop=body.stop_sequences or None,
            structured=self.form.structured,
        )  # fmt: skip
        self.id = new_id("msg")
        self._choice = choice
        self.params = read_by(self.params, self._parser())
        self.blocks = _Blocks(self._parser)
        self._begun = False

    def _parser(self) -> OutputParser:
        parser = make_parser(self.service, self.conversation, self._choice, held_to_form=self.form.whole)
        return OneCall(parser) if single_call(self.body) else parser

    def prepare(self, job: Job) -> list[Callable[[str], EngineRequest]]:
        return conversation_request(self.service, job, self.conversation, self.params, self.body, self.thoughts)

    async def ended(self, job: Job, outputs: list[RequestOutput]) -> int:
        if self.pin_seconds is None:
            return 0
        salt = self.service.salt(job.caller, self.body.cache_salt)
        pin = await self.service.pin(job.caller, outputs[0], salt, self.pin_seconds)
        return 0 if pin is None else pin.num_bytes

    # -- the answer in one piece -------------------------------------------------------------------------------------

    def whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        completion = outputs[0].outputs[0]
        content = [_block(segment) for segment in self.blocks.whole(completion)]
        return self._message(content, self._stop(completion), outputs[0])

    # -- the answer as events ----------------------------------------------------------------------------------------

    def events(self, index: int, output: RequestOutput) -> bytes:
        told = []
        if not self._begun:
            self._begun = True
            message = self._message([], {"stop_reason": None, "stop_sequence": None}, output)
            told = [_event("message_start", message=message), _event("ping")]
        return b"".join(told + self.blocks.news(output.outputs[0]))

    def last_events(self, outputs: list[RequestOutput], held_bytes: int) -> bytes:
        usage = {"output_tokens": outputs[0].usage.completion_tokens}
        delta = self._stop(outputs[0].outputs[0])
        return _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def error_events(self, error: ApiError) -> bytes:
        return named_event("error", error.anthropic_body())

    # -- parts -------------------------------------------------------------------------------------------------------

    def _message(self, content: list[Any], stop: dict[str, Any], output: RequestOutput) -> dict[str, Any]:
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content, **stop,
            "usage": self._usage(output),
        }  # fmt: skip

    def _usage(self, output: RequestOutput) -> dict[str, Any]:
        """Anthropic counts each token of the prompt once: read from the cache, written to it, or neither."""
        fresh = output.usage.prompt_tokens - output.usage.cached_tokens
        pinned = self.pin_seconds is not None
        return {
            "input_tokens": 0 if pinned else fresh,
            "output_tokens": output.usage.completion_tokens,
            "cache_creation_input_tokens": fresh if pinned else 0,
            "cache_read_input_tokens": output.usage.cached_tokens,
        }

    def _stop(self, completion: Completion) -> dict[str, Any]:
        if completion.finish_reason is FinishReason.LENGTH:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if isinstance(completion.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_reason}
        return {"stop_reason": "tool_use" if self.blocks.has_calls else "end_turn", "stop_sequence": None}


class _Blocks(Segments):
    """Content blocks as Anthropic's events tell them."""

    def opened(self, segment: Segment) -> list[bytes]:
        block: dict[str, Any] = {
            Kind.TEXT: {"type": "text", "text": ""},
            Kind.REASONING: {"type": "thinking", "thinking": "", "signature": ""},
            Kind.CALL: {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": {}},
        }[segment.kind]
        return [_event("content_block_start", index=segment.index, content_block=block)]

    def grew(self, segment: Segment, text: str) -> list[bytes]:
        delta = {
            Kind.TEXT: {"type": "text_delta", "text": text},
            Kind.REASONING: {"type": "thinking_delta", "thinking": text},
            Kind.CALL: {"type": "input_json_delta", "partial_json": text},
        }[segment.kind]
        return [_event("content_block_delta", index=segment.index, delta=delta)]

    def closed(self, segment: Segment) -> list[bytes]:
        return [_event("content_block_stop", index=segment.index)]


def _block(segment: Segment) -> dict[str, Any]:
    if segment.kind is Kind.TEXT:
        return {"type": "text", "text": segment.text}
    if segment.kind is Kind.REASONING:
        return {"type": "thinking", "thinking": segment.text, "signature": ""}
    return {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": _object(segment.text)}


def _object(text: str) -> dict[str, Any]:
    """Arguments of a call; an answer that was cut off in the middle of them has none."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _event(kind: str, **data: Any) -> bytes:
    return named_event(kind, {"type": kind, **data})
