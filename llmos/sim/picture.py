"""The cluster over time as a picture (SVG): a strip for each node, coloured by who holds its GPUs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

import numpy as np
import numpy.typing as npt

from llmos.sim.job_replay import Stay

COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f")
OTHERS = "#8c8c8c"
IDLE = "#f4f4f4"
WIDTH, STRIPS = 960, 64
"""Pixels of the time axis, strips at most (more nodes share one)."""
GPU_HEIGHT, GPU_HEIGHT_MOST, LEGIBLE = 1.5, 14.0, 240.0
"""Pixels of one GPU: as many as it takes for the picture to be so high, at least and at most."""
LEFT, TOP, GAP, BOTTOM = 60, 28, 1.0, 54
_STEPS = (1, 2, 3, 5, 10, 15, 20, 30)
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
Floats = npt.NDArray[np.float64]


def picture(stays: Sequence[Stay], nodes: int, per_node: int, title: str) -> str:
    """An SVG document of who held what on ``nodes`` nodes of ``per_node`` GPUs.

    The owners that held most have a colour each, all others share one. A column of pixels shows the mean over its time.
    """
    owners = _owners(stays)
    start_s = min((stay.start_s for stay in stays), default=0.0)
    end_s = max((stay.end_s for stay in stays), default=1.0)
    held = _held(stays, owners, nodes, start_s, max(end_s, start_s + 1e-9))
    height = gpu_height(per_node * len(held))
    strip = per_node * height + GAP
    bottom = TOP + len(held) * strip
    paths = [""] * held.shape[2]
    for number, of_node in enumerate(held):
        for owner, path in enumerate(_areas(of_node, TOP + number * strip, height)):
            paths[owner] += path
    shades = [*COLOURS[: len(owners)], OTHERS]
    shown = [(name, shade) for name, shade, path in zip([*owners, "others"], shades, paths, strict=True) if path]
    drawn = [f'<path fill="{shade}" d="{path}"/>' for shade, path in zip(shades, paths, strict=True) if path]
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{bottom + BOTTOM:g}" '
                'font-family="sans-serif" font-size="11">'
            ),
            f'<text x="{LEFT}" y="16" font-size="13">{escape(title)}</text>',
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{bottom - TOP:g}" fill="{IDLE}"/>',
            *drawn,
            f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">node 0</text>',
            f'<text x="{LEFT - 6}" y="{bottom:g}" text-anchor="end">node {nodes - 1}</text>',
            *axis(end_s - start_s, TOP, bottom),
            *legend(shown, bottom + 40),
            "</svg>\n",
        ]
    )


def gpu_height(gpus: float) -> float:
    """Pixels of one GPU in a picture with strips of so many together."""
    return min(max(GPU_HEIGHT, LEGIBLE / max(gpus, 1)), GPU_HEIGHT_MOST)


def _owners(stays: Iterable[Stay]) -> list[str]:
    """Those that held most GPU time, the first first."""
    held: dict[str, float] = defaultdict(float)
    for stay in stays:
        held[stay.tenant] += (stay.end_s - stay.start_s) * sum(gpus for _, gpus in stay.placement)
    return sorted(held, key=lambda owner: (-held[owner], owner))[: len(COLOURS)]


def _held(stays: Iterable[Stay], owners: Sequence[str], nodes: int, start_s: float, end_s: float) -> Floats:
    """GPUs held on each strip, in each column, by each owner and by all others [strips, WIDTH, owners + 1], on average
    over the nodes of the strip and the time of the column."""
    per_strip = -(-nodes // STRIPS)
    held = np.zeros((-(-nodes // per_strip), WIDTH + 1, len(owners) + 1))
    index = {owner: number for number, owner in enumerate(owners)}
    scale = WIDTH / (end_s - start_s)
    for stay in stays:
        owner = index.get(stay.tenant, len(owners))
        first, last = (stay.start_s - start_s) * scale, (stay.end_s - start_s) * scale
        a, b = int(first), int(last)
        for node, gpus in stay.placement:
            cells = held[node // per_strip, :, owner]
            cells[a:b] += gpus
            cells[a] -= gpus * (first - a)
            cells[b] += gpus * (last - b)
    return held[:, :WIDTH] / per_strip


def _areas(of_node: Floats, top: float, height: float) -> list[str]:
    """For each owner the path of what it holds of one strip [WIDTH, owners], one upon the other from the bottom up."""
    edges = np.round(np.cumsum(np.pad(of_node, ((0, 0), (1, 0))), axis=1) * height * 2) / 2
    paths = []
    for owner in range(of_node.shape[1]):
        path, x = "", 0
        for (low, high), same in groupby(zip(edges[:, owner], edges[:, owner + 1], strict=True)):
            width = len(list(same))
            if high > low:
                path += f"M{LEFT + x} {top + low:g}h{width}v{high - low:g}h-{width}z"
            x += width
        paths.append(path)
    return paths


def axis(span_s: float, top: float, bottom: float) -> list[str]:
    """Marks along the time axis, at most twelve, in the largest unit of which there are a few."""
    unit_s, unit = next(((size, name) for size, name in _UNITS if span_s >= 5 * size), _UNITS[-1])
    count = span_s / unit_s
    step = next((step for step in _STEPS if count <= 12 * step), math.ceil(count / 12))
    places = {mark: LEFT + mark / count * WIDTH if count else LEFT for mark in range(0, int(count) + 1, step)}
    return [
        *(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom + 3:g}" stroke="#000" stroke-opacity="0.15"/>'
          for x in places.values()),
        *(f'<text x="{x:.0f}" y="{bottom + 15:g}" text-anchor="middle">{mark} {unit}</text>'
          for mark, x in places.items()),
    ]  # fmt: skip


def legend(names: Iterable[tuple[str, str]], y: float) -> list[str]:
    """A square of its colour and its name for each owner."""
    return [
        f'<rect x="{LEFT + 96 * i}" y="{y - 9:g}" width="10" height="10" fill="{shade}"/>'
        f'<text x="{LEFT + 96 * i + 14}" y="{y:g}">{escape(name[:12])}</text>'
        for i, (name, shade) in enumerate(names)
    ]
