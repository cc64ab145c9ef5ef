"""Tools for models whose chat template does not know them: told in the system message, results as user messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_ASK = (
    "You may call functions. To call one, answer with nothing but JSON of this form: "
    '{"name": "the function\'s name", "arguments": {…}}. The functions, with the JSON schemas of their arguments:'
)


def written_out(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The conversation with the roles system, user and assistant only, and text contents.

    Calls are written as the ``json`` parser reads them, so that the model sees its own format again.
    """
    names = {
        call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls") or () if "id" in call
    }
    told = [_written(message, names) for message in messages]
    if not tools:
        return told
    asked = "\n".join([_ASK, *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)])
    if told and told[0]["role"] == "system":
        first = told[0] | {"content": f"{told[0]['content']}\n\n{asked}"}
        return [first, *told[1:]]
    return [{"role": "system", "content": asked}, *told]


def _written(message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    if message["role"] == "tool":
        name = names.get(message.get("tool_call_id", ""), message.get("name") or "the function")
        return {"role": "user", "content": f"Result of {name}: {_text(message['content'])}"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    objects = [{"name": call["function"]["name"], "arguments": call["function"]["arguments"]} for call in calls]
    text = json.dumps(objects[0] if len(objects) == 1 else objects, ensure_ascii=False)
    content = _text(message.get("content"))
    return {"role": "assistant", "content": f"{content}\n{text}" if content else text}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""
