"""Who did what when: a picture of some steps with a lane for each rank, as SVG, which every browser shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np

from llmos.parallel.meter import KINDS

COLOURS: Mapping[str, tuple[str, str]] = {
    "forward": ("forward", "#4c78a8"),
    "backward": ("backward", "#72b7b2"),
    "optimizer": ("optimizer", "#54a24b"),
    "communication": ("communication", "#e45756"),
    "bubble": ("waiting for a pipeline neighbour (bubble)", "#d8d8d8"),
    "data": ("waiting for data", "#eeca3b"),
    "rest": ("everything else", "#ffffff"),
}
"""Activity → what it is called, and its colour (Vega's tableau10, which the colour-blind can tell apart)."""

_ACTIVITY = {name: name for name in ("forward", "backward", "optimizer", "data")}
_ACTIVITY |= dict.fromkeys(KINDS, "communication") | {"pp": "bubble"}
_ORDER = tuple(COLOURS)
_PIXELS = 1200
_LEFT, _RIGHT, _TOP, _LANE, _GAP = 150, 30, 70, 34, 10
_LEGEND_COLUMNS = 3

Interval = tuple[str, float, float]
"""What was measured (a part of the step, or a wait of one of ``KINDS``), from when to when, in seconds."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One rank: its name, what it did, and when its steps began, in seconds from the left edge."""

    name: str
    intervals: Sequence[Interval]
    steps: Sequence[float]


def activities(intervals: Sequence[Interval], until_s: float, pixels: int = _PIXELS) -> list[tuple[str, int, int]]:
    """What a rank did, as (activity, first pixel, pixel after the last), from 0 to ``until_s`` without a gap.

    A pixel shows what happened in its middle. A wait counts as such, whatever it was part of; of two parts of the step
    the inner one counts, which ended first.
    """
    row = np.full(pixels, _ORDER.index("rest"))
    known = [one for one in intervals if one[0] in _ACTIVITY]
    outer_first = sorted(known, key=lambda one: (one[0] in KINDS, -one[2]))
    for name, began_s, ended_s in outer_first:
        first, last = (round(at_s / until_s * pixels) for at_s in (began_s, ended_s))
        row[max(0, first) : last] = _ORDER.index(_ACTIVITY[name])
    found, at = [], 0
    for code, run in groupby(row.tolist()):
        length = len(list(run))
        found.append((_ORDER[code], at, at + length))
        at += length
    return found


def draw(lanes: Sequence[Lane], first_step: int, title: str) -> str:
    """The picture, an SVG document: ``lanes`` from the top down, their steps numbered from ``first_step`` on."""
    until_s = max(ended_s for lane in lanes for _, _, ended_s in lane.intervals)
    height = _TOP + len(lanes) * (_LANE + _GAP)
    painted = [activities(lane.intervals, until_s) for lane in lanes]
    parts = [_text(_LEFT, 28, title, "font-size='17' font-weight='bold'")]
    for number, (lane, row) in enumerate(zip(lanes, painted, strict=True)):
        parts += _lane(lane, row, _TOP + number * (_LANE + _GAP))
    parts += _steps(lanes[0], first_step, until_s, height)
    parts += _axis(until_s, height)
    parts += _legend(painted, height + 50)
    size = f"width='{_LEFT + _PIXELS + _RIGHT}' height='{height + 140}'"
    style = "font-family='sans-serif' font-size='13'"
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>\n"
        f"<rect width='100%' height='100%' fill='white'/>\n{body}\n</svg>\n"
    )


def _lane(lane: Lane, row: Sequence[tuple[str, int, int]], top: int) -> list[str]:
    name = _text(_LEFT - 12, top + _LANE / 2 + 5, lane.name, "text-anchor='end'")
    boxes = [
        f"<rect x='{_LEFT + first}' y='{top}' width='{last - first}' height='{_LANE}' fill='{COLOURS[what][1]}'/>"
        for what, first, last in row
        if what != "rest"
    ]
    frame = f"<rect x='{_LEFT}' y='{top}' width='{_PIXELS}' height='{_LANE}' fill='none' stroke='#999'/>"
    return [name, *boxes, frame]


def _steps(lane: Lane, first_step: int, until_s: float, height: int) -> list[str]:
    found = []
    for number, at_s in enumerate(lane.steps):
        x = _LEFT + at_s / until_s * _PIXELS
        found.append(
            f"<line x1='{x:.1f}' y1='{_TOP - 16}' x2='{x:.1f}' y2='{height}' stroke='#333' stroke-dasharray='4 3'/>"
        )
        found.append(_text(x + 4, _TOP - 8, f"step {first_step + number}", "fill='#333'"))
    return found


def _axis(until_s: float, top: int) -> list[str]:
    """Ticks at round numbers of milliseconds."""
    rough_ms = until_s * 1000 / 10
    scale = 10.0 ** np.floor(np.log10(rough_ms))
    tick_ms = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough_ms)
    found = [f"<line x1='{_LEFT}' y1='{top}' x2='{_LEFT + _PIXELS}' y2='{top}' stroke='#333'/>"]
    for number in range(int(until_s * 1000 / tick_ms) + 1):
        x = _LEFT + number * tick_ms / 1000 / until_s * _PIXELS
        found.append(f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{top + 6}' stroke='#333'/>")
        found.append(_text(x, top + 22, f"{number * tick_ms:g} ms", "text-anchor='middle'"))
    return found


def _legend(painted: Sequence[Sequence[tuple[str, int, int]]], top: int) -> list[str]:
    """Colours, names, and the share of all ranks' time."""
    shares = dict.fromkeys(COLOURS, 0.0)
    for row in painted:
        for what, first, last in row:
            shares[what] += (last - first) / _PIXELS / len(painted)
    found = []
    for number, (what, (name, colour)) in enumerate(COLOURS.items()):
        line, column = divmod(number, _LEGEND_COLUMNS)
        x, y = _LEFT + column * _PIXELS // _LEGEND_COLUMNS, top + line * 26
        found.append(f"<rect x='{x}' y='{y}' width='16' height='16' fill='{colour}' stroke='#999'/>")
        found.append(_text(x + 22, y + 13, f"{name} {100 * shares[what]:.1f} %"))
    return found


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {attributes}>{escape(text)}</text>"
