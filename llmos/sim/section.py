"""Mappings as YAML gives them, read field by field: all that is wrong with them is collected and said at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def duration_s(text: str) -> float | None:
    """Seconds of a time such as ``90s``, ``20m``, ``1h30m``, ``1d``; None if it is none."""
    found = _TIME.fullmatch(text.replace(" ", ""))
    if found is None or not text.strip():
        return None
    return sum(float(part or 0) * size for part, size in zip(found.groups(), (86400, 3600, 60, 1), strict=True))


class Section:
    """One mapping of the spec. What is wrong with it is collected in ``problems``."""

    def __init__(self, value: object, where: str, known: Sequence[str], problems: list[str]) -> None:
        self.problems = problems
        self.where = where
        self._value: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            problems.append(f"{where}: expected a mapping of {', '.join(known)}")
        for key in self._value:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                problems.append(f"{where}: `{key}` is not known" + (f"; did you mean `{near[0]}`?" if near else ""))

    def number(self, name: str, least: float, default: float | None = None) -> float:
        """The number ``name``, at least ``least``."""
        value = self._value.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            self.problems.append(f"{self.where}: {name} is {str(value)[:40]}: expected a number of at least {least:g}")
            return least
        return value

    def whole(self, name: str, least: int, default: int | None = None) -> int:
        """The whole number ``name``, at least ``least``."""
        value = self.number(name, least, default)
        if value != int(value):
            self.problems.append(f"{self.where}: {name} is {value:g}: expected a whole number")
        return int(value)

    def text(self, name: str, default: str = "") -> str:
        """The text ``name``, which must be there if there is no ``default``."""
        value = self._value.get(name, default)
        if not isinstance(value, str) or not value:
            self.problems.append(f"{self.where}: {name} is missing: expected a text")
            return ""
        return value

    def below(self, name: str, known: Sequence[str]) -> Section:
        """The mapping ``name`` inside of this one; empty if it is not there."""
        return Section(self._value.get(name, {}), f"{self.where}.{name}", known, self.problems)

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def duration(self, name: str, default: float | None = None) -> float:
        """The time ``name`` in seconds: a number of them, or text such as ``90s``, ``1h30m``."""
        value = self._value.get(name, default)
        if isinstance(value, str) and (seconds := duration_s(value)) is not None:
            return seconds
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            shown = str(value)[:40]
            self.problems.append(f"{self.where}: {name} is {shown}: expected a time such as 90s, 20m, 1h30m")
            return 0.0
        return value

    def one_of(self, name: str, known: Sequence[str], default: str) -> str:
        """The text ``name``, one of ``known``."""
        value = self._value.get(name, default)
        if value not in known:
            self.problems.append(f"{self.where}: {name} is {str(value)[:40]}: expected one of {', '.join(known)}")
            return default
        return str(value)

    def truth(self, name: str, default: bool) -> bool:
        """Whether ``name`` is so."""
        value = self._value.get(name, default)
        if not isinstance(value, bool):
            self.problems.append(f"{self.where}: {name} is {str(value)[:40]}: expected true or false")
        return value is True

    def texts(self, name: str) -> tuple[tuple[str, str], ...]:
        """The mapping ``name`` of names to texts, sorted; empty if it is not there."""
        value = self._value.get(name, {})
        if not isinstance(value, Mapping):
            self.problems.append(f"{self.where}: {name}: expected a mapping of names to values")
            return ()
        return tuple(sorted((str(key), str(of_key)) for key, of_key in value.items()))

    def items(self, name: str) -> Iterator[tuple[object, object]]:
        """What the mapping ``name`` holds; nothing if it is not there."""
        value = self._value.get(name, {})
        if not isinstance(value, Mapping):
            self.problems.append(f"{self.where}: {name}: expected a mapping")
            return
        yield from value.items()

    def is_none(self, name: str) -> bool:
        """Whether ``name`` is there and says that nothing is known."""
        return name in self._value and self._value[name] is None

    def is_mapping(self, name: str) -> bool:
        """Whether ``name`` is a mapping."""
        return isinstance(self._value.get(name), Mapping)

    def list(self, name: str) -> list[Any]:
        """The list ``name``; empty if it is not there."""
        value = self._value.get(name, [])
        if not isinstance(value, list):
            self.problems.append(f"{self.where}: {name}: expected a list")
            return []
        return value
