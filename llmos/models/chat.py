"""Chat templates turn messages into the text a model was trained on. They come with models, so they are sandboxed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError

from llmos.errors import ModelError, UsageError
from llmos.models.template_bounds import BoundedEnvironment, joined

START, END = "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The default template: https://github.com/openai/openai-python/blob/release-v0.28.1/chatml.md."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a model that has no template and knows no ChatML: a text that it can go on with."""

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A Jinja template of a model; ``special`` are its variables, such as bos_token."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Raises ModelError for a template that cannot be compiled."""
        self.source, self._special = source, dict(special)
        self._takes_tools = re.search(r"\btools\b", source) is not None
        try:
            self._environment = _environment()
            self._template = self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is broken: {error}", hint="Repair the template.") from error

    def render(self, messages: Messages, add_generation_prompt: bool = True, tools: Messages = ()) -> str:
        """The text of ``messages`` and, if asked, the beginning of the answer. Each ``content`` is one text, or None.

        ``tools`` are described as OpenAI does. Raises UsageError for what the template does not take, ModelError when
        it leaves the sandbox.
        """
        called = any("tool_calls" in message or message.get("role") == "tool" for message in messages)
        if (tools and not self._takes_tools) or (called and "tool" not in self.source):
            what = "the model's chat template knows no tools: expected a chat without tools and calls"
            raise UsageError(what, hint="Use a model that was tuned for tools.", param="tools" if tools else "messages")
        for number, message in enumerate(messages):
            # Parts of a text could be control tokens once a template joins them.
            if not isinstance(message.get("content"), str | None):
                what = f"`messages[{number}].content` is a {type(message['content']).__name__}: expected text"
                raise UsageError(what, hint="Join its parts.", param=f"messages[{number}].content")
        self._environment.begin()
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=tools or None, **self._special
            )
        except SecurityError as error:
            what = f"the model's chat template does what the sandbox forbids: {error}"
            raise ModelError(what, hint="Do not use a model you do not trust.") from error
        except (RecursionError, MemoryError) as error:
            what = f"the model's chat template does not end: {type(error).__name__}"
            raise ModelError(what, hint="Repair the template.") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            what = f"the model's chat template does not take these messages: {error}"
            raise UsageError(
                what, hint="Each message needs a `role` it knows and `content`.", param="messages"
            ) from error


def _environment() -> BoundedEnvironment:
    """What Hugging Face's templates are written for, and no more."""
    environment = BoundedEnvironment()
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return joined([json.dumps(value, ensure_ascii=False, indent=indent)])


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
