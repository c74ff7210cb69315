"""A picture (SVG) of what became of a load: each request by when it was sent, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from llmos.load import Outcome

WIDTH, HEIGHT, LEFT, TOP, GAP = 960, 200, 70, 30, 40
FIRST, TOKEN, FAILED = "#4e79a7", "#59a14f", "#e15759"


def picture(outcomes: Sequence[Outcome], title: str, first_token_s: float | None, token_s: float | None) -> str:
    """An SVG document: seconds to the first token above, for each later token below, on logarithmic scales. What was
    promised is a line; requests that failed are marks on the lower edge."""
    end_s = max((one.ask.at_s for one in outcomes), default=0.0) or 1.0
    firsts = [(one.ask.at_s, one.first_s) for one in outcomes]
    tokens = [(one.ask.at_s, one.token_s) for one in outcomes]
    failed = [one.ask.at_s for one in outcomes if one.error]
    second = TOP + HEIGHT + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{second + HEIGHT + 30}"',
            '  font-family="sans-serif" font-size="11">',
            f'<text x="{LEFT}" y="16" font-size="13">{escape(title)}</text>',
            *_panel(firsts, end_s, TOP, "to the first token", FIRST, first_token_s),
            *_panel(tokens, end_s, second, "for each token after it", TOKEN, token_s),
            *(_mark(at_s, end_s, top) for at_s in failed for top in (TOP, second)),
            f'<text x="{LEFT}" y="{second + HEIGHT + 16}">0 s</text>',
            f'<text x="{LEFT + WIDTH}" y="{second + HEIGHT + 16}" text-anchor="end">{end_s:.0f} s</text>',
            "</svg>\n",
        ]
    )


def _panel(
    points: Iterable[tuple[float, float]], end_s: float, top: float, label: str, colour: str, promised: float | None
) -> Iterator[str]:
    known = [(at_s, max(value, 1e-6)) for at_s, value in points if not math.isnan(value)]
    values = [value for _, value in known] + ([promised] if promised else [])
    low = math.floor(math.log10(min(values, default=0.01)))
    high = max(math.ceil(math.log10(max(values, default=1.0))), low + 1)

    def height(value: float) -> float:
        return top + HEIGHT * (high - math.log10(value)) / (high - low)

    yield f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="#f4f4f4"/>'
    yield f'<text x="{LEFT + 6}" y="{top + 14}">{label}</text>'
    for power in range(low, high + 1):
        y = height(10.0**power)
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>'
        yield f'<path stroke="#dddddd" d="M{LEFT} {y:.1f}h{WIDTH}"/>'
    dots = "".join(f"M{LEFT + WIDTH * at_s / end_s:.1f} {height(value):.1f}h0" for at_s, value in known)
    yield f'<path stroke="{colour}" stroke-width="3" stroke-linecap="round" d="{dots}"/>'
    if promised:
        yield f'<path stroke="{FAILED}" stroke-dasharray="4" d="M{LEFT} {height(promised):.1f}h{WIDTH}"/>'


def _mark(at_s: float, end_s: float, top: float) -> str:
    return f'<path stroke="{FAILED}" d="M{LEFT + WIDTH * at_s / end_s:.1f} {top + HEIGHT}v-8"/>'
