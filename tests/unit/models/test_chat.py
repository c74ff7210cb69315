"""Chats: what a template may do, and what a message may not."""

from __future__ import annotations

import time

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import ModelError, UsageError
from llmos.models import Tokenizer
from llmos.models.chat import CHATML, START, ChatTemplate
from tests.unit.models.test_tokenizer import TOKENIZER

HI = [{"role": "user", "content": "hi"}]


def test_the_default_is_chatml() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    expected = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert TOKENIZER.apply_chat_template(messages, add_generation_prompt=False) == expected
    assert TOKENIZER.apply_chat_template(messages) == expected + "<|im_start|>assistant\n"


def test_markers_of_the_template_are_control_tokens() -> None:
    tokens = TOKENIZER.encode_chat(HI)
    assert tokens == [
        1, *TOKENIZER.encode("user\nhi"), 2, *TOKENIZER.encode("\n"), 1, *TOKENIZER.encode("assistant\n")
    ]  # fmt: skip


@given(st.lists(st.text() | st.sampled_from(["<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "<|im_", "0;"])))
def test_a_message_cannot_end_its_turn(parts: list[str]) -> None:
    content = "".join(parts)
    tokens = TOKENIZER.encode_chat([{"role": "user", "content": content}])
    assert [token for token in tokens if token < 3] == [1, 2, 1]  # no more than the template's own
    assert tokens[1 : tokens.index(2)] == TOKENIZER.encode(f"user\n{content}")  # and the text is all there


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ (messages|attr('__class__')).__base__ }}",
        "{{ '{0.__class__.__base__}'.format(messages) }}x{{ messages.append(1) }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update(role='system') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ModelError, match="what the sandbox forbids"):
        ChatTemplate(template, {}).render(messages)
    assert messages == HI


@pytest.mark.parametrize("template", ["{% include 'x' %}", "{% import 'os' as os %}", "{% extends '/etc/passwd' %}"])
def test_a_template_reads_no_files(template: str) -> None:
    with pytest.raises(UsageError, match="no loader"):
        ChatTemplate(template, {}).render(HI)


def test_what_templates_of_hugging_face_use() -> None:
    template = (
        "{%- for m in messages %}\n"
        "    {%- if m.role == 'tool' %}{% continue %}{% endif %}\n"
        "    {{- bos_token + m.content | trim }}{{ {'é': [1]} | tojson }}\n"
        "{%- endfor %}\n"
        "{{- strftime_now('%Y')|int > 2000 }}"
    )
    messages = [{"role": "user", "content": " hi "}, {"role": "tool", "content": "x"}]
    assert ChatTemplate(template, {"bos_token": "<s>"}).render(messages) == '<s>hi{"é": [1]}True'


def test_messages_a_template_refuses() -> None:
    strict = ChatTemplate("{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}", {})
    assert strict.render(HI) == ""
    with pytest.raises(UsageError, match="does not take these messages: user first") as caught:
        strict.render([{"role": "system", "content": "hi"}])
    assert caught.value.param == "messages"
    with pytest.raises(UsageError, match="does not take these messages"):
        ChatTemplate("{{ messages[0].content + 1 }}", {}).render(HI)


def test_content_in_parts_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`messages\[1\].content` is a list: expected text") as caught:
        TOKENIZER.encode_chat(
            [*HI, {"role": "user", "content": [{"type": "text", "text": "<|im_"}, {"text": "end|>"}]}]
        )
    assert caught.value.param == "messages[1].content"


def test_a_vocabulary_without_control_tokens() -> None:
    library = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str())
    plain = tokenizers.Tokenizer(library.model)
    plain.pre_tokenizer, plain.decoder = library.pre_tokenizer, library.decoder
    loaded = Tokenizer(plain, {"eos_token": "<|endoftext|>", "chat_template": "{{ messages[0].content }}"})
    assert loaded.encode_chat([{"content": "hi <|im_end|>"}]) == loaded.encode("hi <|im_end|>")


def test_broken_templates_are_the_models_fault() -> None:
    with pytest.raises(ModelError, match="chat template is broken"):
        ChatTemplate("{% for %}", {})


def test_a_model_without_a_template() -> None:
    plain = Tokenizer(TOKENIZER._backend, {"eos_token": "<|endoftext|>"})
    assert plain.encode_chat(HI) == TOKENIZER.encode_chat(HI), "it knows the control tokens of ChatML"
    with pytest.raises(UsageError, match="no chat template"):
        plain.encode_turns(HI)
    library = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str().replace(START, "<|other|>"))
    other = Tokenizer(library, {"eos_token": "<|endoftext|>"})
    assert other.apply_chat_template(HI) == f"User: {HI[0]['content']}\n\nAssistant:"
    assert ChatTemplate(CHATML, {}).render([]) == "<|im_start|>assistant\n"


FOREVER = (
    "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for message in messages recursive %}{{ loop(messages) }}{% endfor %}",
)
TOO_LONG = (
    "{{ 'x' * 10 ** 9 }}",
    "{{ (10 ** 9) * 'x' }}",
    "{{ 'x'.center(10 ** 9) }}{{ 'x' | center(10 ** 9) }}",
    "{{ 'x' | center(width=10 ** 9) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '{:>{}}'.format(1, 10 ** 9) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(n=7) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set ns = namespace(s='x' * 99) %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x' * 99) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set n = namespace(s='x' * 9) %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "{{ ('x' * 9999).replace('x', 'y' * 9999) }}",
    "{{ ('x' * 9999) | replace('x', 'y' * 9999) }}",
    "{{ (['x' * 9999] * 9999) | join }}",
    "{{ ''.join(['x' * 9999] * 9999) }}",
    "{% set s = 'x' * 9999 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
)


@pytest.mark.parametrize("source", [*FOREVER, *TOO_LONG])
def test_templates_that_do_not_end_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmos.models.template_bounds.MAX_S", 0.2)
    began = time.monotonic()
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate(source, {}).render(HI)
    assert time.monotonic() - began < 2


def test_bounds_change_nothing_for_templates_that_end() -> None:
    source = (
        "{% for m in messages %}{% if loop.first %}<{{ loop.length }}>{% endif %}"
        "{{ m.role ~ ': ' ~ m.content ~ loop.index }}"
        "{{ '-' * 3 }}{{ 2 * 3 }}{{ 7 % 4 }}{{ '%s!' % m.role }}{{ m.content.replace('o', '0') | upper }}"
        "{{ [m.role, 1] | join(',') }}{% if not loop.last %}|{% endif %}{% endfor %}{{ namespace(a=1).a + 1 }}"
        "{% for key, value in {'k': 1}.items() if value %}{{ key }}{% else %}none{% endfor %}"
    )
    two = [{"role": "user", "content": "to"}, {"role": "assistant", "content": "go"}]
    assert ChatTemplate(source, {}).render(two) == (
        "<2>user: to1---63user!T0user,1|assistant: go2---63assistant!G0assistant,12k"
    )
