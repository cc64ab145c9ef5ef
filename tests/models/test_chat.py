from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from pagoda.core.errors import ConfigError, ModelError, RequestError
from pagoda.models.chat import ChatTemplate, choose_template, read_templates

from .tokenizer_samples import byte_level

CHATML = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
"""
ALTERNATING = """{{ bos_token }}{% for m in messages %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate, got ' + m['role']) }}
{% endif %}
{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}
{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}"""
WITH_TOOLS = """{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{{ ',' if not loop.last }}{% endfor %}</tools>
{% endif %}{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}
{% set ns.n = ns.n + 1 %}<{{ m.role }}>{{ m.content if m.content is not none else '' }}{% if m.tool_calls %}
{% for c in m.tool_calls %}{{ c.function | tojson(indent=1) }}{% endfor %}{% endif %}
{% endfor %}{{ ns.n }} {{ strftime_now('%Y') }} {{ thinking | default('off') }}"""
TEMPLATES = {"chatml": CHATML, "alternating": ALTERNATING, "with_tools": WITH_TOOLS}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "Hi, you é 你 <b>"}
TURNS = [USER, {"role": "assistant", "content": " Yes.\n"}, {"role": "user", "content": "And?"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "ü<", "parameters": {"type": "object"}}}
CALLS = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "5"},
]


def rendered(text: str, messages: object, **options: object) -> str:
    return ChatTemplate({"default": text}, SPECIAL).render(messages, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    ("name", "messages", "options"),
    [
        ("chatml", [USER], {}),
        ("chatml", [{"role": "system", "content": "S"}, *TURNS], {}),
        ("alternating", TURNS, {}),
        ("with_tools", CALLS, {"tools": [TOOL, TOOL]}),
        ("with_tools", [{"role": "skip", "content": ""}, *TURNS], {"thinking": "on"}),
    ],
)
def test_same_as_transformers(
    tmp_path: Path, name: str, messages: list[dict[str, object]], options: dict[str, object], prompt: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    byte_level().save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **SPECIAL)
    wanted = theirs.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt, **options
    )
    assert rendered(TEMPLATES[name], messages, add_generation_prompt=prompt, **options) == wanted


def test_time_and_generation_prompt() -> None:
    assert str(datetime.now().year) in rendered(WITH_TOOLS, [USER])
    assert rendered(CHATML, [USER]).endswith("<|im_start|>assistant\n")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert rendered("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "an empty list"),
        ("hi", "got a str"),
        ({"role": "user"}, "got a dict"),
        (None, "got a NoneType"),
        (["hi"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\]\.role must be"),
        ([{"role": 5, "content": "x"}], "got 5"),
        ([USER, {"role": "user"}], r"messages\[1\] \(user\) has no content"),
        ([{"role": "user", "content": 5}], "got a int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "part of type 'image_url'; accepted: text"),
        ([{"role": "user", "content": [7]}], "part of type 'int'"),
    ],
)
def test_malformed_messages_are_named(messages: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        rendered(CHATML, messages)


def test_what_a_template_refuses_is_the_requests_fault() -> None:
    with pytest.raises(RequestError, match="refuses this conversation: Roles must alternate, got assistant"):
        rendered(ALTERNATING, [{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{% for %}", ModelError, "chat template 'default', line 1"),
        ("{{ messages[0].nothing.more }}", RequestError, "fails on this conversation .UndefinedError"),
        ("{{ 1 / 0 }}", RequestError, "ZeroDivisionError"),
        ("{{ messages | frob }}", ModelError, "frob"),
    ],
)
def test_template_errors_are_one_line(text: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        rendered(text, [USER])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
    ],
)
def test_the_sandbox_holds(text: str) -> None:
    try:
        shown = rendered("x" + text, [USER])
    except (ModelError, RequestError) as error:
        shown = "x"
        assert "\n" not in str(error)  # noqa: PT017 - both ways are safe
    assert shown == "x"  # an attribute that the sandbox hides is undefined: nothing comes out


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert read_templates(tmp_path) == {}
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert read_templates(tmp_path) == {"default": "one"}
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert read_templates(tmp_path) == {"default": "two", "tool_use": "three"}
    (tmp_path / "chat_template.jinja").write_text("four")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("five")
    assert read_templates(tmp_path) == {"default": "four", "tool_use": "three", "rag": "five"}
    settings.write_text(json.dumps({"chat_template": 5}))
    with pytest.raises(ModelError, match="chat_template must be"):
        read_templates(tmp_path)


def test_named_templates(tmp_path: Path) -> None:
    both = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert both.render([USER]) == "plain"
    assert both.render([USER], tools=[TOOL]) == "tools"
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate({}, {}).render([USER])
    with pytest.raises(RequestError, match="none is default"):
        ChatTemplate({"rag": "x"}, {}).render([USER])
    file = tmp_path / "mine.jinja"
    file.write_text("from a file")
    own = {"default": "a", "rag": "b"}
    assert choose_template(own, None) == own
    assert choose_template(own, "rag") == {"default": "b"}
    assert choose_template(own, "{{ 5 }}") == {"default": "{{ 5 }}"}
    assert choose_template(own, str(file)) == {"default": "from a file"}
    with pytest.raises(ConfigError, match=r"'nowhere': not a file.*\(default, rag\)"):
        choose_template(own, "nowhere")
