"""How commands speak: data on stdout (aligned columns or JSON), everything else on stderr, colour only for people.

It needs nothing but Python: `llmos status` is there at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any

_COLOURS = {
    "green": ("succeeded", "ready", "running", "alive"),
    "yellow": ("queued", "starting", "deploying", "draining", "quarantined"),
    "red": ("failed", "cancelled", "unhealthy", "dead"),
}
_CODES = {"green": 32, "yellow": 33, "red": 31, "dim": 2, "bold": 1}
NARROW = 40  # characters: in less than that a sentence is hard to read
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}


def colourful(stream: IO[str]) -> bool:
    """Whether ``stream`` is a terminal that wants colour (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str | None, stream: IO[str] | None = None) -> str:
    """``text`` in ``colour`` if ``stream`` (default stdout) shows colours."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if colour and colourful(stream or sys.stdout) else text


def phase(word: str) -> str:
    """A phase in the colour of its meaning."""
    return paint(word, _COLOUR_OF.get(word))


def say(text: str) -> None:
    """Data, on stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """Something for the person at the terminal, on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def plain(text: object) -> str:
    """Text of unknown origin on one line, without the control characters that could drive a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def first_line(text: str) -> str:
    """The first line of a text that may have many, such as the report of a hang."""
    return plain(text.partition("\n")[0])


def block(text: str, indent: str) -> str:
    """A text of many lines, all but the first indented."""
    return f"\n{indent}".join(map(plain, text.splitlines()))


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under a header, each column as wide as its widest cell, two spaces apart.

    On a terminal that is too narrow, the last column goes on below itself, or below its row where little room is left.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(_width(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = [[cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)] for line in lines]
    room = screen_width() - sum(widths[:-1]) - 2 * (len(widths) - 1)
    if widths[-1] <= room:
        shown = ["  ".join(line).rstrip() for line in padded]
    else:
        shown = [_folded("  ".join(row), last.rstrip(), room) for *row, last in padded]
    return "\n".join([paint(shown[0], "dim"), *shown[1:]])


def screen_width() -> float:
    """Characters in a line of the terminal that stdout is; infinitely many for files and pipes."""
    if not sys.stdout.isatty():
        return float("inf")
    import shutil  # what it loads besides is not needed where nothing is shown to people

    return shutil.get_terminal_size().columns


def folded(text: str, indent: str) -> str:
    """``text`` in lines that fit the terminal, each with ``indent`` before it."""
    width = screen_width()
    lines = [text] if width == float("inf") else textwrap.wrap(text, max(int(width) - len(indent), NARROW))
    return "\n".join(f"{indent}{line}" for line in lines)


def fields(pairs: Iterable[tuple[str, str]], indent: str = "") -> str:
    """``name  value`` lines, the values aligned."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    room, more = screen_width() - len(indent) - width - 2, "\n" + " " * (len(indent) + width + 2)
    lines = []
    for name, value in shown:
        long = _width(value) > max(room, NARROW) and value.isprintable()
        text = more.join(textwrap.wrap(value, max(int(room), NARROW))) if long else value
        lines.append(f"{indent}{paint(name.ljust(width), 'dim')}  {text}".rstrip())
    return "\n".join(lines)


def yaml_block(value: dict[str, Any]) -> str:
    """``value`` as YAML, indented by two."""
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return "\n".join(f"  {plain(line)}" for line in text.splitlines())


def clock(at: float) -> str:
    """A moment (seconds since the epoch) in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def duration(seconds: float) -> str:
    """``75`` → ``1m 15s``, ``7205`` → ``2h 0m``: two units at most."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h}h"
    if hours:
        return f"{hours}h {m}m"
    return f"{m}m {s}s" if minutes else f"{s}s"


def rough(seconds: float) -> str:
    """A time of which only the size matters: ``45s``, ``12m``, ``4h``, ``3d``."""
    for unit, length_s, most_s in (("s", 1, 90), ("m", 60, 5400), ("h", 3600, 129600)):
        if seconds < most_s:
            return f"{max(0, round(seconds / length_s))}{unit}"
    return f"{round(seconds / 86400)}d"


def age(at: float | None, until: float | None = None) -> str:
    """How long ago ``at`` was, or how long it took from ``at`` ``until`` then; ``-`` if it has not happened."""
    return "-" if at is None else duration((until or time.time()) - at)


def size(amount_bytes: float) -> str:
    """``9600000`` → ``9.6 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount_bytes < 1000:
            return f"{amount_bytes:.0f} B" if unit == "B" else f"{amount_bytes:.1f} {unit}"
        amount_bytes /= 1000
    return f"{amount_bytes:.1f} TB"


def _folded(row: str, last: str, room: float) -> str:
    """``row`` with its ``last`` cell beside it, or below it in whole lines."""
    if _width(last) <= room:
        return f"{row}  {last}".rstrip()
    if room < NARROW:
        return "\n".join(filter(None, [row.rstrip(), *folded(last, "    ").splitlines()]))
    first, *more = textwrap.wrap(last, int(room)) or [""]
    indent = " " * (_width(row) + 2)
    return "\n".join([f"{row}  {first}".rstrip(), *(indent + line for line in more)])


def _width(cell: str) -> int:
    return len(_STYLE.sub("", cell))
