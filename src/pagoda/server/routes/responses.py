"""``/v1/responses``: stateless, or on top of an earlier response, whose conversation and KV were kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ...core.types import FinishReason
from ...engine.outputs import RequestOutput
from ...engine.request import Request as EngineRequest
from ..answering import Answering, answer, conversation_request
from ..conversation import Conversation, Known, chat_tools, require_template, template_variables
from ..errors import ApiError, bad
from ..input_items import input_items, page_of
from ..jobs import Job
from ..logprobs import chat_logprobs
from ..parsers.base import OutputParser
from ..parsers.choose import make_parser
from ..parsers.one_call import OneCall
from ..report import metrics_of
from ..responses_form import Items, answer_message, chat_format, chat_tool_choice, input_messages
from ..responses_form import chat_tools as chat_tools_of
from ..sampling import read_by, sampling_params
from ..schemas.responses import DeletedAnswer, InputItemsAnswer, ResponseAnswer, ResponsesRequest
from ..segments import Kind
from ..service import Service, new_id
from ..stored import Stored
from ..streams import named_event
from ..structured import constraint
from ..thinking import thoughts_of
from .base import ASKS, READS, STREAMS, caller_of, json_answer, request_id_of, roster_of, served

router = APIRouter(tags=["responses"])


@router.post("/v1/responses", response_model=ResponseAnswer, responses=ASKS | STREAMS)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer an input. With ``stream`` the answer is server-sent events."""
    caller, before, model = caller_of(request), None, body.model
    if model is None and body.previous_response_id is not None:
        model = _storing(request, body.previous_response_id).names[0]
    service = await served(request, model)
    if body.previous_response_id is not None:
        before = service.responses.get(
            body.previous_response_id, caller.name, status=400, param="previous_response_id"
        )  # fmt: skip
    asked = _Response(service, body, caller.name, before)
    user = body.user or body.safety_identifier
    job = service.job(request_id_of(request), "responses", caller, user=user)
    return await answer(request, service, job, asked, stream=body.stream)


@router.get("/v1/responses/{response_id}", response_model=ResponseAnswer, responses=READS)
async def stored_response(response_id: str, request: Request) -> Response:
    """A response that was stored."""
    return json_answer(_storing(request, response_id).responses.get(response_id, caller_of(request).name).response)


@router.delete("/v1/responses/{response_id}", response_model=DeletedAnswer, responses=READS)
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response; its KV is not pinned any more."""
    _storing(request, response_id).responses.delete(response_id, caller_of(request).name)
    return json_answer({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", response_model=InputItemsAnswer, responses=READS)
async def stored_input(
    response_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """What the request of a stored response added to the conversation; of earlier ones, ask those."""
    stored = _storing(request, response_id).responses.get(response_id, caller_of(request).name)
    return json_answer(page_of(stored.items, limit=limit, newest_first=order == "desc", after=after))


def _storing(request: Request, response_id: str) -> Service:
    """The model's service that stored it; where none did, one that will say so."""
    roster = roster_of(request)
    return next((one for one in roster.services if response_id in one.responses), roster.first)


class _Response(Answering):
    def __init__(self, service: Service, body: ResponsesRequest, owner: str, before: Stored | None) -> None:
        self.service, self.body, self._owner, self._before = service, body, owner, before
        self.model = service.check_model(body.model)
        service.check_priority(body.priority)
        require_template(service.llm)
        self.pins = service.check_cache_control(body.cache_control, body.kv)
        wants_logprobs = body.include is not None and "message.output_text.logprobs" in body.include
        if body.top_logprobs is not None and not wants_logprobs:
            raise bad("top_logprobs", "top_logprobs: put message.output_text.logprobs into include as well")
        tools, choice = chat_tools_of(body), chat_tool_choice(body)
        self.form = constraint(
            chat_format(body), tools, choice, body.parallel_tool_calls, outputs=body.structured_outputs, service=service
        )
        self.thoughts = thoughts_of(service, body.thinking_token_budget, self.form, "thinking_token_budget")
        self.params = sampling_params(
            body, max_tokens=body.max_output_tokens, logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
            structured=self.form.structured,
        )  # fmt: skip
        self._messages = (before.messages if before is not None else []) + input_messages(body)
        instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
        effort = body.reasoning.effort if body.reasoning is not None else None
        self.conversation = Conversation(
            instructions + self._messages,
            None if choice == "none" else chat_tools(tools),
            template_variables(service.llm, effort, None),
            Known(before.text, before.ids) if before is not None else None,
        )
        self.id, self.created = new_id("resp").replace("-", "_"), int(time.time())
        self._sequence = 0
        self._choice = choice
        self.params = read_by(self.params, self._parser())
        self._items = Items(self._parser, self._event)

    def _parser(self) -> OutputParser:
        parser = make_parser(self.service, self.conversation, self._choice, held_to_form=self.form.whole)
        return OneCall(parser) if self.body.parallel_tool_calls is False else parser

    def prepare(self, job: Job) -> list[Callable[[str], EngineRequest]]:
        return conversation_request(self.service, job, self.conversation, self.params, self.body, self.thoughts)

    async def ended(self, job: Job, outputs: list[RequestOutput]) -> int:
        """Store the conversation, and pin its KV for the next turn."""
        output = outputs[0]
        pin = None
        if self.body.store or self.pins:
            ttl = self.body.cache_control.ttl if self.body.cache_control is not None else None
            salt = self.service.salt(job.caller, self.body.cache_salt)
            pin = await self.service.pin(job.caller, output, salt, ttl)
        held = 0 if pin is None else pin.num_bytes
        if pin is not None and self._before is not None and self._before.pin is not None:
            await self.service.pins.drop(self._before.pin)  # the new pin holds its prefix as well
            self._before.pin = None
        self._collect(output)
        if self.body.store:
            text, ids = self.conversation.after(self.service.llm, output)
            self.service.responses.put(
                Stored(
                    self._whole(outputs, held), self._owner, [*self._messages, answer_message(self._items.segments)],
                    input_items(self.body), text, ids, self.service.now() + self.service.config.response_ttl, pin,
                )
            )  # fmt: skip
        return held

    # -- the answer in one piece -------------------------------------------------------------------------------------

    def whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        return self._whole(outputs, held_bytes)

    def _collect(self, output: RequestOutput) -> None:
        """The items of an answer that was not streamed."""
        completion = output.outputs[0]
        self._note_logprobs(output)
        if not self.body.stream:
            self._items.whole(completion)

    def _note_logprobs(self, output: RequestOutput) -> None:
        reports = output.outputs[0].logprobs
        if reports is not None:
            self._items.logprobs = chat_logprobs(
                self.service.llm.tokenizer, reports, self.body.top_logprobs or 0
            )  # fmt: skip

    # -- the answer as events ----------------------------------------------------------------------------------------

    def first_events(self) -> bytes:
        response = self._shell("in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def events(self, index: int, output: RequestOutput) -> bytes:
        self._note_logprobs(output)
        return b"".join(self._items.news(output.outputs[0]))

    def last_events(self, outputs: list[RequestOutput], held_bytes: int) -> bytes:
        response = self._whole(outputs, held_bytes)
        return self._event(f"response.{response['status']}", response=response)

    def error_events(self, error: ApiError) -> bytes:
        detail = error.body()["error"]
        failed = self._shell("failed", []) | {"error": {"code": error.code or "server_error", "message": str(error)}}
        return self._event("error", code=detail["code"], message=detail["message"], param=detail["param"]) + (
            self._event("response.failed", response=failed)
        )

    # -- parts -------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **data: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return named_event(kind, {"type": kind, "sequence_number": number, **data})

    def _whole(self, outputs: list[RequestOutput], held_bytes: int) -> dict[str, Any]:
        output = outputs[0]
        cut = output.finish_reason is FinishReason.LENGTH
        status = "incomplete" if cut else "completed"
        items = [self._items.item(segment) for segment in self._items.segments]
        return self._shell(status, items) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": self._usage(output),
            "metrics": metrics_of(outputs, held_bytes),
        }

    def _shell(self, status: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        body, params = self.body, self.params.merged_with(self.service.llm.loaded.generation)
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": None, "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "model": self.model, "output": items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "store": body.store, "temperature": params.temperature,
            "text": (body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {})
            or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice if body.tool_choice is None or isinstance(body.tool_choice, str)
            else body.tool_choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools or ()], "top_p": params.top_p,
            "top_logprobs": body.top_logprobs or 0, "truncation": "disabled", "usage": None, "user": body.user,
            "metadata": body.metadata or {}, "metrics": None,
        }  # fmt: skip

    def _usage(self, output: RequestOutput) -> dict[str, Any]:
        usage = output.usage
        thoughts = [segment.text for segment in self._items.segments if segment.kind is Kind.REASONING]
        num_thought = sum(map(len, self.service.llm.tokenizer.encode_many(thoughts, False))) if thoughts else 0
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": min(num_thought, usage.completion_tokens)},
            "total_tokens": usage.total_tokens,
        }
