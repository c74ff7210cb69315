"""A sandbox for chat templates that also ends: bounds of time and of text, for templates come with models.

Jinja's own sandbox keeps a template from files and from Python; it may still loop for ever, or make a text that fills
the memory. Here every turn of a loop and every call looks at the clock, and what makes long texts is asked first.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_S = 5.0
"""Long chats take milliseconds; this is for a machine that is busy with other things."""
MAX_CHARS = 16 * 2**20
MAX_WIDTH = 10_000
MAX_BITS, MAX_POWER = 4096, 64

_WIDE = re.compile(r"\d{5,}|:[^{}]*\{|%[^a-zA-Z%]*\*")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Raises SecurityError for a template that takes longer than MAX_S, or makes a text of more than MAX_CHARS."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self._until = threading.local()
        self.concat = joined  # type: ignore[method-assign]  # what renders, and what `{% set %}` keeps
        self.filters = {name: _checked(name, function) for name, function in self.filters.items()}
        self.filters |= {"bounded_loop": _loop, "bounded_concat": _concat}

    def begin(self) -> None:
        """A template is rendered in this thread from now on."""
        self._until.s = time.monotonic() + MAX_S

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """See :class:`jinja2.sandbox.SandboxedEnvironment`."""
        self.look_at_clock()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            _check(function.__name__, owner, args, kwargs)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See :class:`jinja2.sandbox.SandboxedEnvironment`."""
        size = len(left) if isinstance(left, str | list | tuple) else 0
        if operator == "+" and size + (len(right) if isinstance(right, str | list | tuple) else 0) > MAX_CHARS:
            raise _too_long()
        if operator == "*" and (size or hasattr(right, "__len__")):
            times, much = (right, size) if size else (left, len(right))
            if isinstance(times, int) and times * much > MAX_CHARS:
                raise _too_long()
        if operator == "%" and isinstance(left, str):
            _check("format", left, (), {})
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            power = right if operator == "**" else 1
            if power > MAX_POWER or left.bit_length() * max(power, 1) + right.bit_length() > MAX_BITS:
                raise SecurityError(f"a number of more than {MAX_BITS} bits")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See :class:`jinja2.sandbox.SandboxedEnvironment`: what stands for ``str.format``."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check("format", value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return checked

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            assert isinstance(loop.iter, nodes.Expr)
            loop.iter = _filter(loop.iter, "bounded_loop")
        _replace_concats(tree)
        return tree

    def look_at_clock(self) -> None:
        """Raises SecurityError when the template has taken too long."""
        if time.monotonic() > getattr(self._until, "s", float("inf")):
            raise SecurityError(f"it takes longer than {MAX_S:g} s")


def joined(parts: Iterable[str]) -> str:
    """The text of ``parts``. Raises SecurityError when it is too long."""
    found, size = [], 0
    for part in parts:
        size += len(part)
        if size > MAX_CHARS:
            raise _too_long()
        found.append(part)
    return "".join(found)


@pass_context
def _loop(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    for item in items:
        environment.look_at_clock()
        yield item


@pass_context
def _concat(_context: Context, parts: Iterable[Any]) -> str:
    return joined(map(str, parts))


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which is asked first what it is given."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        text = next((arg for arg in args if isinstance(arg, str)), "")
        _check(name, text, args[1:], kwargs)
        if name == "join":
            items = next((list(arg) for arg in args if isinstance(arg, list | tuple)), [])
            separator = next((len(arg) for arg in args if isinstance(arg, str)), 0)
            if sum(len(str(item)) for item in items) + separator * len(items) > MAX_CHARS:
                raise _too_long()
        return function(*args, **kwargs)

    return checked


def _check(method: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises SecurityError for what would make a text much longer."""
    given = (*args, *kwargs.values())
    if method == "format":
        if _WIDE.search(text):
            raise SecurityError("a format with a width of more than four digits, or one from its arguments")
        return
    if any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in given):
        raise SecurityError(f"`{method}` with a number above {MAX_WIDTH}")
    texts = [value for value in given if isinstance(value, str)]
    if method == "replace" and len(texts) > 1 and (text.count(texts[-2]) + 1) * len(texts[-1]) > MAX_CHARS:
        raise _too_long()
    if method == "join":
        for value in given:
            if isinstance(value, list | tuple) and sum(len(str(one)) + len(text) for one in value) > MAX_CHARS:
                raise _too_long()


def _too_long() -> SecurityError:
    return SecurityError(f"a text of more than {MAX_CHARS} characters")


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    found = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    if node.environment is not None:
        found.set_environment(node.environment)
    return found


def _replace_concats(node: nodes.Node) -> None:
    """``a ~ b``, which Jinja asks nobody about, as a filter of a list."""
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, field, _concat_node(value))
        elif isinstance(value, list):
            node_list = [_concat_node(one) if isinstance(one, nodes.Concat) else one for one in value]
            setattr(node, field, node_list)
    for child in node.iter_child_nodes():
        _replace_concats(child)


def _concat_node(node: nodes.Concat) -> nodes.Filter:
    parts = nodes.List(node.nodes, lineno=node.lineno)
    if node.environment is not None:
        parts.set_environment(node.environment)
    return _filter(parts, "bounded_concat")
