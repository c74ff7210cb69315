"""Reads YAML into plain values and remembers the line of every key.

Values follow the YAML 1.2 core schema: ``3e-4`` is a number and ``no`` is text (PyYAML's own 1.1 rules say otherwise
of both). Duplicate keys and custom tags are problems; size, depth and the growth of aliases are bounded, because a
spec may come from a stranger over HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmos.spec.problems import Loc

MAX_CHARACTERS = 1 << 18
MAX_VALUES = 20_000  # after aliases are expanded
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar rules of YAML 1.2 (section 10.3.2)."""


class Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that :class:`Loader` would read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        # YAML 1.1 takes these for line ends, and PyYAML would fold them into spaces
        style = '"' if any(end in data for end in "\x85\u2028\u2029") else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)


for _resolver in (Loader, Dumper):
    _resolver.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]{1,300}|0x[0-9a-fA-F]{1,200}", list("-+0123456789")),
        ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
        ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ):
        _resolver.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its value, the line (from 1) of every key and item, and what could not be read."""

    line: int
    value: Any = None
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def line_of(self, loc: Loc) -> int:
        """The line of ``loc``, or of the nearest mapping around it when the spec does not mention it."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, self.line)


def read(text: str) -> Iterator[Document]:
    """The documents of ``text``. A syntax error becomes a last document that holds nothing but the problem."""
    if len(text) > MAX_CHARACTERS:
        yield _broken(1, f"too long: expected at most {MAX_CHARACTERS} characters, found {len(text)}")
        return
    try:
        for node in yaml.compose_all(text, Loader):
            yield _Reader().document(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        yield _broken(line, f"not YAML: character {error.character!r} is not allowed in text")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield _broken(mark.line + 1 if mark else 1, f"not YAML: {_explain(error)}")
    except RecursionError:
        yield _broken(1, f"nested too deeply: expected at most {MAX_DEPTH} levels")


def _explain(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's own words, but for two mistakes that they make hard to see."""
    if "'\\t'" in (error.problem or ""):
        return "a tab where only spaces may be: indent with spaces"
    if "undefined alias" in (error.problem or ""):  # PyYAML would show it, and it may be a password
        return "an alias (`*…`) of nothing: put text that begins with `*` in quotes"
    return " ".join(filter(None, (error.problem, error.context)))


def _broken(line: int, problem: str) -> Document:
    return Document(line, problems=[(line, problem)])


class _TooMuch(Exception):
    """Reading was given up: the document is too deep, too large or endless."""


class _Reader:
    """Converts the nodes of one document."""

    def __init__(self) -> None:
        self.values = 0
        self.lines: dict[Loc, int] = {}
        self.problems: list[tuple[int, str]] = []

    def document(self, node: Node) -> Document:
        line = node.start_mark.line + 1
        try:
            value = self.value(node, ())
        except _TooMuch as error:
            return _broken(line, str(error))
        return Document(line, value, self.lines, self.problems)

    def value(self, node: Node, loc: Loc) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _TooMuch(f"too large once its aliases are expanded: expected at most {MAX_VALUES} values")
        if len(loc) > MAX_DEPTH:
            raise _TooMuch(f"nested too deeply: expected at most {MAX_DEPTH} levels (does an alias contain itself?)")
        match node, node.tag.removeprefix(_TAG):
            case MappingNode(), "map":
                return self.mapping(node, loc)
            case SequenceNode(), "seq":
                return self.sequence(node, loc)
            case ScalarNode(), "null" | "bool" | "str" | "int" | "float" as kind:
                return self.scalar(node, kind)
            case _:
                self.problem(node, "tags are not supported: put text that begins with `!` in quotes")
                return None

    def mapping(self, node: MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.problem(key_node, "a key is a list or mapping: expected text")
                continue
            key = key_node.value
            if key in result:
                self.problem(
                    key_node, f"`{key[:80]}` appears twice, first on line {self.lines[(*loc, key)]}: expected it once"
                )
                continue
            self.lines[(*loc, key)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*loc, key))
        return result

    def sequence(self, node: SequenceNode, loc: Loc) -> list[Any]:
        for i, item in enumerate(node.value):
            self.lines[(*loc, i)] = item.start_mark.line + 1
        return [self.value(item, (*loc, i)) for i, item in enumerate(node.value)]

    def scalar(self, node: ScalarNode, kind: str) -> str | bool | int | float | None:
        text: str = node.value
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text, 16 if text.startswith("0x") else 10)
                case "float":
                    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        except ValueError:  # only an explicit tag gets here, as in `!!int abc`
            self.problem(node, f"tagged as `!!{kind}`, and is not a number")
        return text

    def problem(self, node: Node, text: str) -> None:
        self.problems.append((node.start_mark.line + 1, text))
