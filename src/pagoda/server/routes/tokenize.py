"""``/tokenize`` and ``/detokenize``: the model's tokenizer, without the engine."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from ..conversation import Conversation, chat_tools, from_chat_messages, require_template, template_variables
from ..errors import bad
from ..schemas.chat import Message, Tool
from ..schemas.common import Answer, Body
from ..schemas.completions import TokenId
from .base import errors, json_answer, served

router = APIRouter(tags=["tokenizer"])
_ANSWERS = errors(400, 401, 404, 405, 408, 413, 429, 503)


class TokenizeRequest(Body):
    """Either ``prompt`` or ``messages`` (which go through the chat template)."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    add_special_tokens: bool = Field(True, description="For a prompt; messages have the template's own.")
    return_token_strs: bool = False


class TokenizeAnswer(Answer):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str | None] | None = None


class DetokenizeRequest(Body):
    tokens: list[TokenId]
    model: str | None = None
    skip_special_tokens: bool = False


class DetokenizeAnswer(Answer):
    prompt: str


@router.post("/tokenize", response_model=TokenizeAnswer, response_model_exclude_unset=True, responses=_ANSWERS)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Token ids of a text, or of a conversation."""
    service = await served(request, body.model, awake=False)
    if (body.prompt is None) == (body.messages is None):
        raise bad("prompt", "give either prompt or messages")
    if body.messages is None and (body.tools or body.chat_template_kwargs):
        raise bad("messages", "tools and chat_template_kwargs go with messages")
    tokenizer = service.llm.tokenizer

    def encode() -> list[int]:
        if body.messages is None:
            return tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
        require_template(service.llm)
        variables = template_variables(service.llm, None, body.chat_template_kwargs)
        return Conversation(from_chat_messages(body.messages), chat_tools(body.tools), variables).ids(service.llm)

    ids = await asyncio.to_thread(encode)
    answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.llm.max_model_len}
    if body.return_token_strs:
        answer["token_strs"] = [tokenizer.token(token_id) for token_id in ids]
    return json_answer(answer)


@router.post("/detokenize", response_model=DetokenizeAnswer, responses=_ANSWERS)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids."""
    service = await served(request, body.model, awake=False)
    size = service.llm.loaded.shape.vocab_size
    if body.tokens and max(body.tokens) >= size:
        raise bad("tokens", f"tokens: {max(body.tokens)} is no token of this model; its ids are 0 to {size - 1}")
    text = await asyncio.to_thread(service.llm.tokenizer.decode, body.tokens, body.skip_special_tokens)
    return json_answer({"prompt": text})
