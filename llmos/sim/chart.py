"""What happened on a small cluster as a picture (SVG): each attempt is a block on the GPUs that it held, and below is
who waited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llmos.sim.chronicle import Block, Chronicle, Life, Span
from llmos.sim.picture import COLOURS, IDLE, LEFT, OTHERS, TOP, WIDTH, axis, gpu_height, legend
from llmos.sim.scenario import Scenario

GAP, ROW, WAITING, BOTTOM, RIGHT, LETTER = 5.0, 11.0, 14, 48, 26, 6.0
"""Pixels between nodes, of the row of one that waits, such rows at most, pixels below, to the right, of a letter."""
DARK = ("#4e79a7", "#e15759", "#59a14f", "#9c755f", OTHERS)
"""Colours that white letters can be read on."""
_STYLES = (
    "<defs>"
    '<pattern id="ends" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#fff" fill-opacity="0.25"/><rect width="3" height="6" fill="#222"/></pattern>'
    '<pattern id="shut" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">'
    '<rect width="2" height="8" fill="#b00" fill-opacity="0.45"/></pattern>'
    "</defs>"
)


@dataclass(frozen=True, slots=True)
class Looks:
    """How much of what is drawn: ``gpus`` by node, ``group`` and colour by job or service (``groups``: by group)."""

    title: str
    until_s: float
    gpus: Mapping[str, float]
    group: Mapping[str, str]

    @property
    def groups(self) -> dict[str, str]:
        """The colour of each group, in the order of the scenario. Those after the last colour share one."""
        names = list(dict.fromkeys(self.group.values()))
        return {name: COLOURS[i] if i < len(COLOURS) else OTHERS for i, name in enumerate(names)}

    def colour(self, owner: str) -> str:
        """The colour of a job or service."""
        return self.groups[self.group[owner]]

    def x(self, at_s: float) -> float:
        """Where the time ``at_s`` is, in pixels."""
        return round(LEFT + min(at_s / self.until_s, 1.0) * WIDTH, 1)


def looks_of(scenario: Scenario, told: Chronicle) -> Looks:
    """All that is in ``scenario``, and the nodes that came while it was played."""
    gpus = {node.id: node.total.gpus for node in scenario.nodes}
    started = {kind.name: kind.total.gpus for kind, _ in scenario.kinds}
    gpus |= {span.of: started[span.of.rpartition("-")[0]] for span in told.there if span.of not in gpus}
    group = {service.id: service.id for service, _ in scenario.services}
    group |= {work.job.id: work.job.tenant if scenario.by_tenant else work.group for work in scenario.works}
    return Looks(scenario.title, scenario.until_s, gpus, group)


def chart(told: Chronicle, looks: Looks) -> str:
    """An SVG document of what happened."""
    height = gpu_height(sum(looks.gpus.values()))
    tops, bottom = {}, TOP + 0.0
    for node, gpus in looks.gpus.items():
        tops[node], bottom = bottom, bottom + max(gpus * height, 3.0) + GAP
    rows = _rows(told.waits, looks)
    end = bottom + (len(rows) * ROW + 16 if rows else 0)
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{end + BOTTOM:g}" '
                'font-family="sans-serif" font-size="11">'
            ),
            _STYLES,
            '<rect width="100%" height="100%" fill="#fff"/>',
            f'<text x="{LEFT}" y="16" font-size="13">{escape(looks.title)}</text>',
            *_nodes(told, looks, tops, height),
            *axis(looks.until_s, TOP, end),
            *(line for block in _placed(told.blocks, looks, tops, height) for line in block),
            *_waiting(rows, looks, bottom, told.lives),
            *legend(_named(looks), end + 38),
            "</svg>\n",
        ]
    )


def _named(looks: Looks) -> list[tuple[str, str]]:
    """The groups that have a colour of their own, and the others."""
    groups = list(looks.groups.items())
    return groups[: len(COLOURS)] + ([("others", OTHERS)] if len(groups) > len(COLOURS) else [])


def _nodes(told: Chronicle, looks: Looks, tops: Mapping[str, float], height: float) -> Iterator[str]:
    """A strip for each node while it is there, hatched while it takes no work."""
    for node, top in tops.items():
        high = looks.gpus[node] * height
        yield f'<text x="{LEFT - 6}" y="{top + high / 2 + 4:g}" text-anchor="end">{escape(node)}</text>'
        for span in told.there:
            if span.of == node:
                yield _box(looks, span.start_s, span.end_s, top, high, IDLE)
        for span in told.shut:
            if span.of == node:
                yield _box(looks, span.start_s, span.end_s, top, high, "url(#shut)")


def _box(looks: Looks, start_s: float, end_s: float, top: float, high: float, fill: str, rest: str = "") -> str:
    x = looks.x(start_s)
    return f'<rect x="{x:g}" y="{top:g}" width="{looks.x(end_s) - x:.1f}" height="{high:g}" fill="{fill}"{rest}/>'


def _placed(blocks: Sequence[Block], looks: Looks, tops: Mapping[str, float], height: float) -> Iterator[list[str]]:
    """Each block on GPUs of its node that no other has meanwhile: side by side if there are so many."""
    by_node: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        by_node[block.node].append(block)
    for node, top in tops.items():
        for block, parts in lanes(by_node[node], looks.gpus[node]):
            for low, high in parts:
                yield list(_drawn(block, looks, top + low * height, (high - low) * height))


def _drawn(block: Block, looks: Looks, top: float, high: float) -> Iterator[str]:
    rest = ' stroke="#fff" stroke-width="0.8"'
    yield _box(looks, block.start_s, block.end_s, top, high, looks.colour(block.owner), rest)
    if block.asked_s is not None:
        yield _box(looks, block.asked_s, block.end_s, top, high, "url(#ends)")
    if block.failed:
        x = looks.x(block.end_s)
        yield f'<path d="M{x - 1.5:g} {top:g}v{high:g}" stroke="#000" stroke-width="3"/>'
    room = looks.x(block.end_s) - looks.x(block.start_s)
    if high >= 8 and room > LETTER * len(block.owner) + 4:
        size = f' font-size="{min(high - 1, 11):g}"'
        x, y = looks.x(block.start_s) + 3, top + high / 2 + 3.5
        ink = "#fff" if looks.colour(block.owner) in DARK else "#222"
        yield f'<text x="{x:g}" y="{y:g}" fill="{ink}"{size}>{escape(block.owner)}</text>'


def lanes(blocks: Sequence[Block], gpus: float) -> Iterator[tuple[Block, list[tuple[float, float]]]]:
    """For each of a node's ``blocks`` the parts of its ``gpus`` that are its own, as (low, high), from 0."""
    free = [(0.0, gpus)]
    held: list[tuple[Block, list[tuple[float, float]]]] = []
    for block in sorted(blocks, key=lambda block: (block.start_s, block.owner)):
        for entry in [entry for entry in held if entry[0].end_s <= block.start_s]:
            held.remove(entry)
            free = _joined([*free, *entry[1]])
        parts = _taken(free, block.gpus)
        free = _without(free, parts)
        held.append((block, parts))
        yield block, parts


def _taken(free: Sequence[tuple[float, float]], amount: float) -> list[tuple[float, float]]:
    """The first part of ``free`` that is large enough; of several, if none is."""
    for low, high in free:
        if high - low >= amount - 1e-9:
            return [(low, low + amount)] if amount else []
    parts = []
    for low, high in free:
        parts.append((low, min(high, low + amount)))
        amount -= parts[-1][1] - low
        if amount <= 1e-9:
            break
    return parts


def _without(free: Sequence[tuple[float, float]], parts: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    taken = dict(parts)
    left = [(taken.get(low, low), high) for low, high in free]
    return [(low, high) for low, high in left if high - low > 1e-9]


def _joined(parts: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for low, high in sorted(parts):
        if joined and low - joined[-1][1] < 1e-9:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def _rows(waits: Sequence[Span], looks: Looks) -> dict[str, list[Span]]:
    """The waits that can be seen, by job in the order in which they came; by group, where there are too many jobs."""
    long = [span for span in waits if span.end_s - span.start_s >= looks.until_s / 200]
    many = len({span.of for span in long}) > WAITING
    seen: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(long, key=lambda span: span.start_s):
        spans = seen[looks.group[span.of] if many else span.of]
        if spans and span.start_s <= spans[-1].end_s:
            span = Span(span.of, spans[-1].start_s, max(span.end_s, spans.pop().end_s))
        spans.append(span)
    return seen


def _waiting(rows: Mapping[str, Sequence[Span]], looks: Looks, top: float, lives: Mapping[str, Life]) -> Iterator[str]:
    """A row for each job that waited, with marks at the start that was estimated: the median, and nine of ten."""
    if rows:
        yield f'<text x="{LEFT - 6}" y="{top + 10:g}" text-anchor="end" fill="#666">waiting:</text>'
    for number, (id, spans) in enumerate(rows.items()):
        y = top + 14 + number * ROW
        yield f'<text x="{LEFT - 6}" y="{y + 8:g}" text-anchor="end" font-size="10">{escape(id[:12])}</text>'
        colour = looks.colour(spans[0].of)
        rest = f' fill-opacity="0.35" stroke="{colour}"'
        yield from (_box(looks, span.start_s, span.end_s, y + 1, ROW - 3, colour, rest) for span in spans)
        said_s = lives[id].said_s if id in lives else None
        for at_s, width in zip(said_s or (), (2.0, 0.8), strict=False):
            if at_s <= looks.until_s:
                x = looks.x(at_s)
                yield f'<path d="M{x:g} {y - 0.5:g}v{ROW:g}" stroke="#000" stroke-width="{width:g}"/>'
