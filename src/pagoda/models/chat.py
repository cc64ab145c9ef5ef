"""Chat templates: a list of messages to the text that the model was trained on, through jinja2 in a sandbox.

A template comes with the model, from a stranger. It runs in jinja2's immutable sandbox: no attributes that start with
an underscore, no change of what it is given, no files, no imports. Helpers are those that templates expect
(https://huggingface.co/docs/transformers/chat_templating): raise_exception, strftime_now, tojson, loop controls and
the ``{% generation %}`` block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagoda.core.errors import ConfigError, ModelError, PagodaError, RequestError

from .tokenizer import Tokenizer, read_json, read_settings

if TYPE_CHECKING:
    import jinja2

DEFAULT, TOOLS = "default", "tool_use"
NO_TEMPLATE = "the model has no chat template; use plain generation, or give one (--chat-template)"


def read_templates(folder: Path) -> dict[str, str]:
    """The model's templates by name; {} where it has none.

    ``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja`` come before tokenizer_config.json (a text, or
    a list of named texts) and chat_template.json.
    """
    found: dict[str, str] = {}
    for source in (read_json(folder / "chat_template.json"), read_settings(folder)):
        found |= _named(source.get("chat_template"), folder)
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    return found | {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}


def choose_template(templates: Mapping[str, str], override: str | None) -> dict[str, str]:
    """``override`` is the text of a template, a file that holds one, or the name of one of the model's templates."""
    if override is None:
        return dict(templates)
    if override in templates:
        return {DEFAULT: templates[override]}
    if "{" in override:
        return {DEFAULT: override}
    try:
        return {DEFAULT: Path(override).expanduser().read_text(encoding="utf-8")}
    except (OSError, ValueError) as error:
        names = ", ".join(templates) or "none"
        raise ConfigError(
            f"chat template {override!r}: not a file that can be read ({getattr(error, 'strerror', None) or error}), "
            f"not a template text, not one of the model's templates ({names})"
        ) from error


class ChatTemplate:
    """A model's templates, compiled. Raises ModelError at once if one is not a template."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self._compiled = {name: _compile(name, text) for name, text in templates.items()}

    @classmethod
    def of(cls, templates: Mapping[str, str], tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate:
        """The template of a loaded model, or the one that the user prefers."""
        return cls(choose_template(templates, override), tokenizer.special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as text, special tokens written out: encode it without adding special tokens.

        ``tools`` and ``variables`` (``enable_thinking=False``, …) go to the template. Raises RequestError for a
        malformed conversation, or one that the template refuses.
        """
        template = self._select(bool(tools))
        values: dict[str, Any] = {**self._special_tokens, **variables}
        values |= {"messages": checked_messages(messages), "tools": list(tools) if tools else None}
        values |= {"documents": documents, "add_generation_prompt": add_generation_prompt}
        try:
            return template.render(values)
        except PagodaError:
            raise
        except Exception as error:  # a template can fail in any way that Python can
            raise _translated(template, error) from error

    def _select(self, with_tools: bool) -> jinja2.Template:
        if not self._compiled:
            raise RequestError(NO_TEMPLATE)
        for name in (TOOLS, DEFAULT) if with_tools else (DEFAULT,):
            if name in self._compiled:
                return self._compiled[name]
        raise RequestError(f"the model names several chat templates ({', '.join(self._compiled)}) and none is default")


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as plain dicts, text parts joined by line breaks. Raises RequestError naming what is wrong."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(f"messages must be a list of at least one {{role, content}}, got {_shown(messages)}")
    return [_checked(i, message) for i, message in enumerate(messages)]


def _checked(i: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"messages[{i}] must be an object with role and content, got {_shown(message)}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise RequestError(f"messages[{i}].role must be a text such as system, user, assistant or tool, got {role!r}")
    if content is None and "tool_calls" not in message and "content" not in message:
        raise RequestError(f"messages[{i}] ({role}) has no content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "\n".join(_part(i, part) for part in content)
    elif not isinstance(content, str) and content is not None:
        raise RequestError(f"messages[{i}].content must be text or a list of text parts, got {_shown(content)}")
    if content is None and "tool_calls" not in message:
        content = ""
    return {**message, "content": content}


def _part(i: int, part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RequestError(f"messages[{i}].content has a part of type {kind!r}; accepted: text")


def _shown(value: object) -> str:
    return "an empty list" if isinstance(value, (list, tuple)) and not value else f"a {type(value).__name__}"


def _named(value: object, folder: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()):
        return dict(value)
    if isinstance(value, list) and all(isinstance(v, Mapping) and {"name", "template"} <= v.keys() for v in value):
        return {str(v["name"]): str(v["template"]) for v in value}
    raise ModelError(f"{folder}: chat_template must be a text or a list of {{name, template}}, got {_shown(value)}")


def check_template(text: str) -> None:
    """Raises ModelError for what is no template."""
    _compile(DEFAULT, text)


def _compile(name: str, text: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().from_string(text)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise ModelError(f"chat template {name!r}, line {line}: {error.message}") from error


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}…{% endgeneration %}`` marks the assistant's words for training; here it is its body."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 reads it as a class attribute

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> None:
    raise RequestError(f"the chat template refuses this conversation: {' '.join(str(message).split())}")


def _translated(template: jinja2.Template, error: Exception) -> PagodaError:
    from jinja2.exceptions import SecurityError

    said = " ".join(str(error).split())[:200]
    if isinstance(error, SecurityError):
        return ModelError(f"the chat template tries what the sandbox forbids ({said}); do not trust this model's files")
    return RequestError(f"the chat template fails on this conversation ({type(error).__name__}: {said})")
